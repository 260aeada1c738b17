"""Chat completions: chunks of a stream, and the whole reply.

Chunks are put together from parts made once per reply; only the delta is encoded anew.
"""

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from stream_aligner_proxy.api.faces.describing import (
    joined,
    merge,
    sentence_object,
    summaries,
    summary,
    total,
    usage_object,
)
from stream_aligner_proxy.api.faces.face import Face
from stream_aligner_proxy.api.faces.openai_errors import DONE, OpenAiErrors
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.records import Delivery, Finished, Mode

# Events are filled up to a multiple of so many bytes.
_FILLED_TO = 256


class Chunks:
    """Makes the `chat.completion.chunk` events of one reply."""

    def __init__(self, plan: Plan) -> None:
        head = _head(plan, "chat.completion.chunk")
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        self._include_usage = plan.include_usage
        # With include_usage every chunk but the last says that it has none.
        self._tail = b',"usage":null' if plan.include_usage else b""
        self._provenance = plan.tells_sentences
        self._logprobs = plan.logprobs
        self._obfuscates = plan.obfuscation
        self._open = [b'[{"index":%d,"delta":' % choice for choice in range(plan.choices)]

    def first(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(role, choice) for choice in range(len(self._open)))

    def delivery(self, delivery: Delivery, choice: int = 0) -> bytes:
        """The event for one delivery; empty where there is nothing to say."""
        sentence = sentence_object(delivery) if self._provenance else None
        logprobs = _logprobs_object(delivery.logprobs) if self._logprobs else None
        if delivery.part is not None:
            return self._chunk(delivery.part, choice, sentence=sentence)
        if delivery.text:
            delta = {"content": delivery.text}
            return self._chunk(delta, choice, sentence=sentence, logprobs=logprobs)
        if sentence is None and logprobs is None:
            return b""
        return self._chunk({}, choice, sentence=sentence, logprobs=logprobs)

    def finished(self, finished: Finished, choice: int = 0) -> bytes:
        """The finish chunk."""
        extension = None if finished.mode is Mode.OFF else summary(finished)
        return self._chunk(
            {},
            choice,
            finish_reason=finished.finish_reason,
            extension=extension,
            about=finished.about,
        )

    def last(self, finished: Sequence[Finished]) -> bytes:
        """The usage chunk where it was asked for, and the end marker."""
        usage = total(finished)
        if not self._include_usage or usage is None:
            return DONE
        told = [b'[],"usage":', orjson.dumps(usage_object(usage)), *_fields(finished[0].about)]
        return b"".join((self._head, *told, b"}\n\n", DONE))

    def _chunk(
        self,
        delta: Mapping[str, Any],
        choice: int,
        *,
        finish_reason: str | None = None,
        sentence: dict[str, Any] | None = None,
        extension: dict[str, Any] | None = None,
        logprobs: dict[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> bytes:
        if sentence is not None:
            extension = {"sentence": sentence}
        event = [
            self._head,
            self._open[choice],
            orjson.dumps(delta),
            b',"logprobs":',
            orjson.dumps(logprobs),
            b',"finish_reason":',
            orjson.dumps(finish_reason),
            b"}]",
            self._tail,
        ]
        if about:
            event += _fields(about)
        if extension is not None:
            event += _fields({EXTENSION: extension})
        if self._obfuscates:
            event += [b',"obfuscation":"', _filling(sum(map(len, event))), b'"']
        event.append(b"}\n\n")
        return b"".join(event)


class Gatherer:
    """Joins the same deliveries into one `chat.completion`."""

    def __init__(self, plan: Plan) -> None:
        self._head = _head(plan, "chat.completion")
        self._provenance = plan.tells_sentences
        self._logprobs = plan.logprobs
        self._choices = [Gathered() for _ in range(plan.choices)]

    def add(self, delivery: Delivery, choice: int = 0) -> None:
        self._choices[choice].add(delivery)

    def completion(self, finished: Sequence[Finished]) -> bytes:
        reply: dict[str, Any] = {
            **self._head,
            "choices": [
                {
                    "index": index,
                    "message": gathered.message(),
                    "logprobs": _logprobs_object(gathered.logprobs) if self._logprobs else None,
                    "finish_reason": one.finish_reason,
                }
                for index, (gathered, one) in enumerate(zip(self._choices, finished, strict=True))
            ],
            **finished[0].about,
        }
        usage = total(finished)
        if usage is not None:
            reply["usage"] = usage_object(usage)
        if finished[0].mode is not Mode.OFF:
            told = [one.sentences for one in self._choices] if self._provenance else None
            reply[EXTENSION] = summaries(finished, told)
        return orjson.dumps(reply)


class Gathered:
    """What one choice came to: text, tool calls and other parts, joined as an SDK joins them."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._parts: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self.sentences: list[dict[str, Any]] = []
        self.logprobs: list[Mapping[str, Any]] = []

    def add(self, delivery: Delivery) -> None:
        if delivery.text:
            self._text.append(delivery.text)
        for key, value in (delivery.part or {}).items():
            if key == "tool_calls" and isinstance(value, list):
                self._add_calls(value)
            elif key != "role":
                merge(self._parts, key, value)
        sentence = sentence_object(delivery)
        if sentence is not None:
            self.sentences.append(sentence)
        self.logprobs += delivery.logprobs

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
                    merge(call, key, value)

    def message(self) -> dict[str, Any]:
        """The assistant's message."""
        text, parts = "".join(self._text), joined(self._parts)
        only_calls = not text and (self._calls or parts)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if only_calls else text,
            "refusal": None,
            **parts,
        }
        if text and "content" in parts:  # parts that are not text, as Mistral's thinking
            message["content"] = [*parts["content"], {"type": "text", "text": text}]
        if self._calls:
            message["tool_calls"] = [joined(self._calls[index]) for index in sorted(self._calls)]
        return message


def _head(plan: Plan, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": plan.request.model,
    }


def _fields(values: Mapping[str, Any]) -> list[bytes]:
    """More fields of an object that has some already."""
    return [b"," + orjson.dumps({name: value})[1:-1] for name, value in values.items()]


def _logprobs_object(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    return {"content": list(entries), "refusal": None} if entries else None


def _filling(length: int) -> bytes:
    """Letters that make an event's length, so far `length`, tell little of what is in it."""
    return secrets.token_urlsafe(_FILLED_TO)[: _FILLED_TO - length % _FILLED_TO].encode()


CHAT = Face(Chunks, Gatherer, OpenAiErrors())
