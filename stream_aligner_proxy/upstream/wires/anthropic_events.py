"""From the events of Anthropic's Messages API to `Chunk`s. Pure: no I/O.

A reply is a message of typed blocks, each begun, filled by deltas and ended; the token counts and
the stop reason come with `message_delta`. Events and blocks of unknown types are passed over, as
the API's versioning policy asks. Sources: Anthropic's guides to streaming messages, stop reasons,
errors and extended thinking.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import Chunk, Usage
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.wires.anthropic_words import FINISH, STATUS


class AnthropicReader:
    """Turns one branch's events into chunks.

    The API counts tokens once, at the end: until then each delta counts as one, and no usage is
    told, so that nobody takes the guess for a count.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._counted = 0
        self._usage: dict[str, Any] = {}
        self._calls = 0  # tool calls begun
        self._bare_call = False  # the running call has no arguments yet
        self._thinking: dict[str, str] | None = None  # the running block, told again when signed
        self.finished = False

    def read(self, event: SseEvent) -> Iterator[Chunk]:
        """The chunks of one event."""
        if event.event == "ping":
            return
        yield from self.read_object(parse_object(event.data), event.event)

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]:
        """The chunks of one parsed event, or of a whole message."""
        match frame.get("type"):
            case "content_block_delta":
                yield from self._delta(_object(frame, "delta"))
            case "content_block_start":
                yield from self._start(_object(frame, "content_block"))
            case "content_block_stop":
                yield from self._stop()
            case "message_start":
                self._take_usage(_object(frame, "message"))
            case "message_delta":
                self._take_usage(frame)
                yield from self._finish(_object(frame, "delta").get("stop_reason"))
            case "message":
                yield from self._whole(frame)
            case "error":
                error = _object(frame, "error")
                raise self._refusals.from_frame(frame, STATUS.get(str(error.get("type")), 502))
            case str():
                pass
            case _:
                raise UpstreamGarbled("the upstream sent an object that is not an event")

    def _start(self, block: Mapping[str, Any]) -> Iterator[Chunk]:
        match block.get("type"):
            case "text" if block.get("text"):
                yield self._text(block["text"])
            case "tool_use":
                self._bare_call = True
                yield self._part(
                    {
                        "tool_calls": [
                            {
                                "index": self._calls,
                                "id": block.get("id"),
                                "type": "function",
                                "function": {"name": block.get("name"), "arguments": ""},
                            }
                        ]
                    }
                )
                self._calls += 1
                if block.get("input"):  # a whole message has them here, a stream in deltas
                    yield self._arguments(orjson.dumps(block["input"]).decode())
            case "thinking":
                self._thinking = {"thinking": "", "signature": ""}
                yield from self._think(block.get("thinking"))
                self._sign(block.get("signature"))
            case "redacted_thinking":
                yield self._part({"thinking_blocks": [dict(block)]}, tokens=0)

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Chunk]:
        match delta.get("type"):
            case "text_delta":
                text = delta.get("text")
                if not isinstance(text, str):
                    raise UpstreamGarbled("the upstream sent content that is not text")
                if text:
                    yield self._text(text)
            case "input_json_delta":
                if piece := delta.get("partial_json"):
                    yield self._arguments(piece)
            case "thinking_delta":
                yield from self._think(delta.get("thinking"))
            case "signature_delta":
                self._sign(delta.get("signature"))

    def _stop(self) -> Iterator[Chunk]:
        if self._bare_call:  # a tool without parameters; clients parse what they get
            yield self._arguments("{}")
        if (thought := self._thinking) is not None:
            self._thinking = None
            if thought["signature"]:
                yield self._part({"thinking_blocks": [{"type": "thinking", **thought}]}, tokens=0)

    def _whole(self, message: Mapping[str, Any]) -> Iterator[Chunk]:
        content = message.get("content")
        if not isinstance(content, list):
            raise UpstreamGarbled("the upstream sent a message without content")
        for block in content:
            yield from self._start(block)
            yield from self._stop()
        self._take_usage(message)
        yield from self._finish(message.get("stop_reason"))

    def _finish(self, reason: object) -> Iterator[Chunk]:
        if reason is None:
            return
        self.finished = True
        usage = self._told()
        growth = 0 if usage is None else max(usage.completion_tokens - self._counted, 0)
        yield Chunk(finish_reason=FINISH.get(str(reason), "stop"), usage=usage, tokens=growth)

    def _take_usage(self, holder: Mapping[str, Any]) -> None:
        """The counts are cumulative, but not every event repeats all of them."""
        usage = holder.get("usage")
        if isinstance(usage, dict):
            self._usage.update({k: v for k, v in usage.items() if v is not None})

    def _told(self) -> Usage | None:
        """The counts in OpenAI's names: there the prompt includes what came from a cache."""
        counts = self._usage
        if "output_tokens" not in counts:
            return None
        cached = counts.get("cache_read_input_tokens", 0)
        prompt = counts.get("input_tokens", 0) + counts.get("cache_creation_input_tokens", 0)
        return Usage(
            prompt + cached,
            counts["output_tokens"],
            {"prompt_tokens_details": {"cached_tokens": cached}},
        )

    def _text(self, text: str) -> Chunk:
        self._counted += 1
        return Chunk(text=text)

    def _part(self, part: Mapping[str, Any], tokens: int = 1) -> Chunk:
        self._counted += tokens
        return Chunk(part=part, tokens=tokens)

    def _arguments(self, piece: str) -> Chunk:
        self._bare_call = False
        call = {"index": self._calls - 1, "function": {"arguments": piece}}
        return self._part({"tool_calls": [call]})

    def _think(self, text: object) -> Iterator[Chunk]:
        if isinstance(text, str) and text:
            if self._thinking is not None:
                self._thinking["thinking"] += text
            yield self._part({"reasoning_content": text})

    def _sign(self, signature: object) -> None:
        if self._thinking is not None and isinstance(signature, str):
            self._thinking["signature"] += signature


def _object(frame: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = frame.get(name)
    if not isinstance(value, dict):
        raise UpstreamGarbled(f"the upstream sent an event without its {name}")
    return value
