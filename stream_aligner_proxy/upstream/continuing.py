"""Reading a continued branch: what is not new text is taken out, and what is found is told."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stream_aligner_proxy.core.errors import ContinuationFailed
from stream_aligner_proxy.core.records import THINKING, Chunk
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.seam import BeganAgain, Seam
from stream_aligner_proxy.upstream.wires import Reader


class ContinuedReader:
    """A reader of a branch that continues `prefix`. Implements `Reader`.

    Thoughts are dropped: they would come after the text. `seam`: hold the first text until it is
    sure that it goes on. `seen(True)` when it does, `seen(False)` when it does not. `began`:
    how the upstream itself began its reply, before any correction.
    """

    def __init__(
        self,
        inner: Reader,
        prefix: str,
        seen: Callable[[bool], None],
        *,
        seam: bool,
        began: str = "",
    ) -> None:
        self._inner = inner
        self._seam = Seam(prefix, began) if seam else None
        self._seen = seen
        self._told = self._failed = False
        self._tokens = 0  # of what is held or dropped

    @property
    def finished(self) -> bool:
        return self._inner.finished and not self._failed

    def read(self, event: SseEvent) -> Iterator[Chunk]:
        return self._chunks(self._inner.read(event))

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]:
        return self._chunks(self._inner.read_object(frame, event))

    def _chunks(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for given in chunks:
            chunk = given
            if chunk.logprobs or chunk.about:
                yield chunk
                continue
            if chunk.part is not None and THINKING.issuperset(chunk.part):
                self._tokens += chunk.tokens
                if chunk.finish_reason is None and chunk.usage is None:
                    continue
                chunk = Chunk("", None, chunk.finish_reason, chunk.usage, 0)
            last = chunk.finish_reason is not None or chunk.part is not None
            text = self._through(chunk.text, last=last) if chunk.text or last else ""
            tokens = chunk.tokens
            if text or last:
                tokens += self._tokens
                self._tokens = 0
            elif chunk.text:
                self._tokens += tokens
                tokens = 0
                if chunk.usage is None:
                    continue
            if text and not self._told:
                self._told = True
                # Who writes all of it once more may as well have begun again.
                if self._seam is None or not self._seam.repeated:
                    self._seen(True)
            yield Chunk(text, chunk.part, chunk.finish_reason, chunk.usage, tokens)

    def _through(self, text: str, *, last: bool) -> str:
        if self._seam is None:
            return text
        try:
            return self._seam.feed(text, last=last)
        except BeganAgain:
            self._failed = True
            self._seen(False)
            raise ContinuationFailed("the upstream began its answer again") from None
