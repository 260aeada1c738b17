"""What a branch and a relay hand out: chunks, or raw frames, pulled one at a time.

Classes rather than generators: they can be dropped at any point, and leaving the context that
opened them is all the clean-up there is. What came before an error is always handed out before it.
"""

import re
from collections import deque
from collections.abc import Iterable
from typing import Self

from stream_aligner_proxy.core.errors import UpstreamError, UpstreamGarbled
from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.core.sse import SseDecoder, SseEvent, SseFrames
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.exchange import Exchange
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.wires import Reader

MAX_BODY_BYTES = 64 * 1024 * 1024
# A reply is complete with its finish reason; usage and [DONE] follow at once or never.
_AFTER_FINISH_SECONDS = 5.0
_DONE = b"[DONE]"
_DONE_FRAME = b"data: [DONE]\n\n"
_DONE_LINES = (b"data: [DONE]", b"data:[DONE]")
# Inside a JSON string the quotes are escaped, so no reply's text can look like this.
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')


def _bare(error: UpstreamError) -> UpstreamError:
    """Without its traceback, which holds all that was read of an event without an end: megabytes.
    It is kept by what it would keep, so only a full collection of garbage would free them."""
    return error.with_traceback(None)


class ChunkStream:
    """The chunks of one branch."""

    def __init__(self, exchange: Exchange, reader: Reader) -> None:
        self._exchange = exchange
        self._reader = reader
        self._decoder = SseDecoder()
        self._ready: deque[Chunk] = deque()
        self._error: UpstreamError | None = None
        self.over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self.over:
                raise StopAsyncIteration
            await self._fill()
        return self._ready.popleft()

    async def _fill(self) -> None:
        if self._reader.finished:
            self._exchange.hurry(_AFTER_FINISH_SECONDS)
        try:
            data = await self._exchange.read()
            events = self._decoder.flush() if data is None else self._decoder.feed(data)
            self._take(events)
        except UpstreamError as error:
            self._decoder = SseDecoder()
            self._end(_bare(error))
        else:
            if data is None:
                self._end(None)

    def _take(self, events: Iterable[SseEvent]) -> None:
        for event in events:
            if event.data == _DONE:
                self._end(None)
                return
            self._ready.extend(self._reader.read(event))

    def _end(self, error: UpstreamError | None) -> None:
        if not self.over and not self._reader.finished:
            self._error = error or UpstreamGarbled(
                "the upstream's stream ended before its reply did"
            )
        self.over = True


class WholeReply(ChunkStream):
    """The chunks of a server that ignored `stream` and answered one JSON object."""

    async def _fill(self) -> None:
        try:
            reply = parse_object(await self._exchange.read_all(MAX_BODY_BYTES))
            self._ready.extend(self._reader.read_object(reply))
        except UpstreamError as error:
            self._end(_bare(error))
        else:
            self._end(None)


class FrameStream:
    """The frames of one relayed stream: each item is one or more whole ones, as they came.

    Ends with `data: [DONE]`, which is added where the upstream omits it after a finish reason of
    each of the `choices`.
    """

    def __init__(self, exchange: Exchange, refusals: Refusals, choices: int = 1) -> None:
        self._exchange = exchange
        self._refusals = refusals
        self._frames = SseFrames()
        self._ready: deque[bytes] = deque()
        self._error: UpstreamError | None = None
        self._unfinished = choices
        self.over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self.over:
                raise StopAsyncIteration
            await self._fill()
        return self._ready.popleft()

    async def _fill(self) -> None:
        if self._unfinished <= 0:
            self._exchange.hurry(_AFTER_FINISH_SECONDS)
        try:
            data = await self._exchange.read()
            if data is not None:
                self._take(self._frames.feed(data))
            elif rest := self._frames.flush():
                # Only a frame that was whole but for its blank line is worth passing on.
                for event in SseDecoder().feed(rest + b"\n\n"):
                    if event.data != _DONE:
                        parse_object(event.data)
                    self._take(rest + b"\n\n")
        except UpstreamError as error:
            self._frames = SseFrames()
            self._end(_bare(error))
        else:
            if data is None:
                self._end(None)

    def _take(self, frames: bytes) -> None:
        if not frames or self.over:
            return
        # What may be an error or the end is looked at; all else is not even taken apart.
        if b'"error"' in frames or b"[DONE]" in frames:
            self._take_each(frames)
        else:
            self._pass(frames)

    def _take_each(self, frames: bytes) -> None:
        passed: list[bytes] = []
        try:
            for body in frames.split(b"\n\n")[:-1]:
                frame = body + b"\n\n"
                if b'"error"' in frame:
                    self._check(frame)
                passed.append(frame)
                if body.strip(b"\n") in _DONE_LINES:
                    self.over = True
                    break
        finally:
            if passed:
                self._pass(b"".join(passed))

    def _pass(self, frames: bytes) -> None:
        self._unfinished -= len(_FINISHED.findall(frames))
        self._ready.append(frames)

    def _check(self, frame: bytes) -> None:
        """An error frame is raised, so that it gets the same treatment as in a branch."""
        for event in SseDecoder().feed(frame):
            value = parse_object(event.data)
            if event.event == "error" or value.get("error"):
                raise self._refusals.from_frame(value)

    def _end(self, error: UpstreamError | None) -> None:
        if self.over:
            return
        self.over = True
        if self._unfinished <= 0:
            self._ready.append(_DONE_FRAME)
        else:
            self._error = error or UpstreamGarbled(
                "the upstream's stream ended before its reply did"
            )
