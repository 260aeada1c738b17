"""From the JSON objects of a chat stream to `Chunk`s. Pure: no I/O.

Tolerates what common servers do (no delta, no choices, null content, content as a list, `message`
for `delta`); anything else is `UpstreamGarbled`, an error frame is the error it carries.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import THINKING, Chunk, Usage
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.rejections import Refusals

# What else is passed on. A field that is not known here may hold the text again, unreviewed
# (rule 3): it is dropped.
_AFTER_TEXT = frozenset(
    ("tool_calls", "function_call", "refusal", "audio", "images", "annotations")
)
# What it tells of the reply itself, wherever it comes.
_ABOUT = ("service_tier", "system_fingerprint")
# The same for the items of a content that is a list.
_CONTENT_PARTS = frozenset(
    ("thinking", "reference", "image", "image_url", "audio", "input_audio", "file")
)


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object. Raises `UpstreamGarbled`."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamGarbled("the upstream sent invalid JSON") from error
    if not isinstance(value, dict):
        raise UpstreamGarbled("the upstream sent JSON that is not an object")
    return value


class ChunkReader:
    """Turns one branch's events into chunks.

    A chunk's tokens are the growth of the upstream's running count where it reports one with each
    chunk, otherwise 1 for every delta that carries something. `prefix` is given where the upstream
    repeats it: it is then dropped, however it is cut, and counts no tokens; text that turns out not
    to be the prefix is passed on.
    """

    def __init__(self, refusals: Refusals, prefix: str = "") -> None:
        self._refusals = refusals
        self._prefix = prefix
        self._held = ""
        self._held_tokens = 0
        self._counted = 0
        self._counting = False
        self._about: tuple[Any, ...] = (None,) * len(_ABOUT)
        self.finished = False

    def read(self, event: SseEvent) -> Iterator[Chunk]:
        """The chunks of one event that is not `[DONE]`."""
        if event.event == "ping":
            return
        yield from self.read_object(parse_object(event.data), event.event)

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]:
        """The chunks of one parsed chunk object, or of a whole `chat.completion` object."""
        if event == "error" or frame.get("error") or frame.get("object") == "error":
            raise self._refusals.from_frame(frame)
        about = tuple(frame.get(name) for name in _ABOUT)
        if about != self._about:
            self._about = about
            told = {n: v for n, v in zip(_ABOUT, about, strict=True) if isinstance(v, str)}
            if told:
                yield Chunk(about=told, tokens=0)
        usage = _usage(frame.get("usage"))
        choices = frame.get("choices")
        if not choices:
            if choices != [] and (choices is not None or usage is None):
                raise UpstreamGarbled("the upstream sent an object that is not a chat chunk")
            if usage is not None:
                yield Chunk(usage=usage, tokens=self._grow(usage, 0))
            return
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict) or len(choices) > 1 or choice.get("index"):
            raise UpstreamGarbled("the upstream sent choices that were not asked for")
        yield from self._choice(choice, usage)

    def _choice(self, choice: Mapping[str, Any], usage: Usage | None) -> Iterator[Chunk]:
        delta = choice.get("delta")
        if delta is None:
            delta = choice.get("message") or {}
        if not isinstance(delta, dict):
            raise UpstreamGarbled("the upstream sent a delta that is not an object")
        finish = choice.get("finish_reason") or None
        text, extra = _content(delta.get("content"))
        before: dict[str, Any] = {}
        after: dict[str, Any] = dict(extra)
        if len(delta) > 1 or "content" not in delta:  # most deltas are content alone
            for name, value in delta.items():
                if value in (None, "", [], {}):
                    continue
                if name in THINKING:
                    # It comes before the text it leads to, even where one delta carries both.
                    before[name] = value
                elif name in _AFTER_TEXT:
                    after[name] = value
        tokens = self._grow(usage, 1 if text or before or after else 0)
        if self._prefix and (text or finish):
            text, tokens = self._drop_prefix(text, tokens, last=finish is not None)
        if before:
            yield Chunk(part=before, tokens=0 if text or after else tokens)
        if logprobs := _logprobs(choice.get("logprobs")):
            yield Chunk(logprobs=logprobs, tokens=0)
        if text and after:
            yield Chunk(text=text, tokens=tokens)
            text, tokens = "", 0
        if text or after or finish or usage is not None:
            if before and not text and not after:
                tokens = 0
            self.finished = self.finished or finish is not None
            yield Chunk(text, after or None, finish, usage, tokens)

    def _grow(self, usage: Usage | None, guess: int) -> int:
        """The tokens of this chunk, by the running count once there is one."""
        if usage is None:
            if not self._counting:
                self._counted += guess
                return guess
            return 0
        self._counting = True
        growth = max(usage.completion_tokens - self._counted, 0)
        self._counted += growth
        return growth

    def _drop_prefix(self, text: str, tokens: int, *, last: bool) -> tuple[str, int]:
        held = self._held + text
        if held.startswith(self._prefix):
            rest = held[len(self._prefix) :]
            self._prefix = self._held = ""
            return rest, tokens if rest else 0
        if not last and self._prefix.startswith(held):
            self._held = held
            self._held_tokens += tokens
            return "", 0
        self._prefix = self._held = ""
        return held, tokens + self._held_tokens


def _content(content: object) -> tuple[str, Mapping[str, Any]]:
    """Text, and what is not text in a content that is a list of typed parts."""
    if content is None:
        return "", {}
    if isinstance(content, str):
        return content, {}
    if not isinstance(content, list):
        raise UpstreamGarbled("the upstream sent content that is not text")
    text: list[str] = []
    others: list[Any] = []
    for item in content:
        if isinstance(item, str):
            text.append(item)
        elif isinstance(item, dict) and isinstance(item.get("text"), str):
            text.append(item["text"])
        elif isinstance(item, dict) and item.get("type") in _CONTENT_PARTS:
            others.append(item)
    return "".join(text), {"content": others} if others else {}


def _logprobs(value: object) -> list[Mapping[str, Any]]:
    entries = value.get("content") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    details = dict(value)
    prompt, completion = details.pop("prompt_tokens", 0), details.pop("completion_tokens", 0)
    return Usage(
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
        details,
    )
