"""What the client reads: chunks of a stream, and the whole reply. Bytes out, no I/O.

Chunks are put together from parts made once per reply; only the delta is encoded anew.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Delivery, Finished, Mode, Usage

DONE = b"data: [DONE]\n\n"


def error_frame(error: ProxyError) -> bytes:
    """One SSE event that SDKs raise as an API error.

    `[DONE]` follows it, as it does with vLLM: readers that wait for the marker end cleanly instead
    of taking the close for a lost connection and asking again. That the reply failed shows in the
    error itself and in the missing `finish_reason`.
    """
    return b"data: " + orjson.dumps(error.body()) + b"\n\n"


def usage_object(usage: Usage) -> dict[str, Any]:
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    # An upstream's own total may hold more than these two, such as Gemini's thinking.
    return {**counts, **usage.details}


def summary(finished: Finished) -> dict[str, Any]:
    """The extension object at the end of a reply."""
    return {
        "mode": finished.mode,
        "continuation": finished.continuation,
        "cost": asdict(finished.cost),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def sentence_object(delivery: Delivery) -> dict[str, Any] | None:
    """Where a delivered text comes from; None for what is not a sentence."""
    unit = delivery.unit
    if unit is None:
        return None
    described: dict[str, Any] = {
        "index": unit.index,
        "original": unit.original,
        "text": unit.text,
        "verdict": unit.outcome,
        "end": unit.end,
        "branch": unit.branch,
        "review_ms": _milliseconds(delivery.review_seconds),
        "waited_ms": _milliseconds(delivery.waited_seconds),
    }
    if unit.error is not None:
        described["error"] = unit.error
    return described


class Chunks:
    """Makes the `chat.completion.chunk` events of one reply."""

    def __init__(
        self, *, reply_id: str, created: int, model: str, include_usage: bool, provenance: bool
    ) -> None:
        head = {
            "id": reply_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        # With include_usage every chunk but the last says that it has none.
        self._tail = b',"usage":null' if include_usage else b""
        self._include_usage = include_usage
        self._provenance = provenance

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def delivery(self, delivery: Delivery) -> bytes:
        """The event for one delivery; empty where there is nothing to say."""
        sentence = sentence_object(delivery) if self._provenance else None
        if delivery.part is not None:
            return self._chunk(delivery.part, sentence=sentence)
        if delivery.text:
            return self._chunk({"content": delivery.text}, sentence=sentence)
        return self._chunk({}, sentence=sentence) if sentence is not None else b""

    def last(self, finished: Finished) -> bytes:
        """The finish chunk, the usage chunk where it was asked for, and the end marker."""
        extension = None if finished.mode is Mode.OFF else summary(finished)
        end = self._chunk({}, finish_reason=finished.finish_reason, extension=extension)
        if self._include_usage and finished.usage is not None:
            usage = orjson.dumps(usage_object(finished.usage))
            end += self._head + b'[],"usage":' + usage + b"}\n\n"
        return end + DONE

    def _chunk(
        self,
        delta: Mapping[str, Any],
        *,
        finish_reason: str | None = None,
        sentence: dict[str, Any] | None = None,
        extension: dict[str, Any] | None = None,
    ) -> bytes:
        if sentence is not None:
            extension = {"sentence": sentence}
        event = [
            self._head,
            b'[{"index":0,"delta":',
            orjson.dumps(delta),
            b',"logprobs":null,"finish_reason":',
            orjson.dumps(finish_reason),
            b"}]",
            self._tail,
        ]
        if extension is not None:
            event += [b',"', EXTENSION.encode(), b'":', orjson.dumps(extension)]
        event.append(b"}\n\n")
        return b"".join(event)


class Gatherer:
    """Joins the same deliveries into one `chat.completion`."""

    def __init__(self, *, reply_id: str, created: int, model: str, provenance: bool) -> None:
        self._head = {
            "id": reply_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
        }
        self._provenance = provenance
        self._text: list[str] = []
        self._message: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._sentences: list[dict[str, Any]] = []

    def add(self, delivery: Delivery) -> None:
        if delivery.text:
            self._text.append(delivery.text)
        for key, value in (delivery.part or {}).items():
            if key == "tool_calls" and isinstance(value, list):
                self._add_calls(value)
            elif key != "role":
                _merge(self._message, key, value)
        sentence = sentence_object(delivery)
        if sentence is not None:
            self._sentences.append(sentence)

    def _add_calls(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            # Servers that send a call in one piece may leave its number out.
            number = index if isinstance(index, int) else len(self._calls)
            call = self._calls.setdefault(number, {})
            for key, value in piece.items():
                if key in ("id", "type"):
                    call[key] = value
                elif key != "index":
                    _merge(call, key, value)

    def completion(self, finished: Finished) -> bytes:
        text = "".join(self._text)
        only_calls = not text and (self._calls or self._message)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if only_calls else text,
            **self._message,
        }
        if text and "content" in self._message:  # parts that are not text, as Mistral's thinking
            message["content"] = [*self._message["content"], {"type": "text", "text": text}]
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        reply: dict[str, Any] = {
            **self._head,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finished.finish_reason,
                }
            ],
        }
        if finished.usage is not None:
            reply["usage"] = usage_object(finished.usage)
        if finished.mode is not Mode.OFF:
            reply[EXTENSION] = summary(finished)
            if self._provenance:
                reply[EXTENSION]["sentences"] = self._sentences
        return orjson.dumps(reply)


def _merge(into: dict[str, Any], key: str, value: Any) -> None:
    """Add one delta: strings and lists grow, objects merge, anything else replaces."""
    before = into.get(key)
    match before, value:
        case str(), str():
            into[key] = before + value
        case list(), list():
            into[key] = before + value
        case dict(), dict():
            merged = dict(before)
            for inner, piece in value.items():
                _merge(merged, inner, piece)
            into[key] = merged
        case _, None:
            into.setdefault(key, None)
        case _:
            into[key] = value
