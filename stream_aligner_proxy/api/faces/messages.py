"""Anthropic's Messages: the events of a stream, and the whole message.

Both are made of the same blocks. Sources: Anthropic's API reference (Messages) and its guides to
streaming messages and stop reasons.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic_core import from_json

from stream_aligner_proxy.api.faces.describing import sentence_object, summary
from stream_aligner_proxy.api.faces.face import Face
from stream_aligner_proxy.api.faces.messages_blocks import Blocks, Event
from stream_aligner_proxy.api.faces.messages_errors import AnthropicErrors
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.records import Delivery, Finished, Mode, Usage
from stream_aligner_proxy.upstream.wires.anthropic_words import FINISH

# Of the words that mean the same, the first.
_STOP_REASONS = {ours: theirs for theirs, ours in reversed(list(FINISH.items()))}
_STOP_REASONS["function_call"] = "tool_use"


class MessageEvents:
    """Makes the events of one message."""

    def __init__(self, plan: Plan) -> None:
        self._message = _head(plan)
        self._blocks = Blocks()
        self._provenance = plan.tells_sentences

    def first(self) -> bytes:
        # Nothing is counted yet; `message_delta` tells it all.
        message = {
            **self._message,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _written([{"type": "message_start", "message": message}])

    def delivery(self, delivery: Delivery, choice: int = 0) -> bytes:
        """The events for one delivery; empty where there is nothing to say."""
        sentence = sentence_object(delivery) if self._provenance else None
        return _written(self._blocks.add(delivery, sentence))

    def finished(self, finished: Finished, choice: int = 0) -> bytes:
        """The end of the last block, and `message_delta`."""
        ended = _written(self._blocks.end())
        event: Event = {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(finished, self._blocks), "stop_sequence": None},
            "usage": _usage(finished.usage),
        }
        if finished.mode is not Mode.OFF:
            event[EXTENSION] = summary(finished)
            if self._blocks.untold:
                event[EXTENSION]["sentences"] = self._blocks.untold
        return ended + _written([event])

    def last(self, finished: Sequence[Finished]) -> bytes:
        return _written([{"type": "message_stop"}])


class WholeMessage:
    """Joins the same events into one message."""

    def __init__(self, plan: Plan) -> None:
        self._head = _head(plan)
        self._blocks = Blocks()
        self._content = _Content()
        self._provenance = plan.tells_sentences
        self._sentences: list[dict[str, Any]] = []

    def add(self, delivery: Delivery, choice: int = 0) -> None:
        self._content.take(self._blocks.add(delivery))
        sentence = sentence_object(delivery) if self._provenance else None
        if sentence is not None:
            self._sentences.append(sentence)

    def completion(self, finished: Sequence[Finished]) -> bytes:
        self._content.take(self._blocks.end())
        message: dict[str, Any] = {
            **self._head,
            "content": self._content.blocks(),
            "stop_reason": stop_reason(finished[0], self._blocks),
            "stop_sequence": None,
            "usage": _usage(finished[0].usage),
        }
        if finished[0].mode is not Mode.OFF:
            message[EXTENSION] = summary(finished[0])
            if self._provenance:
                message[EXTENSION]["sentences"] = self._sentences
        return orjson.dumps(message)


class _Content:
    """Blocks, put together from their events."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[list[str]] = []

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case {"type": "content_block_start", "content_block": block}:
                    self._blocks.append(block)
                    self._pieces.append([])
                case {"delta": {"type": "signature_delta", "signature": signature}}:
                    self._blocks[-1]["signature"] = signature
                case {"delta": delta}:
                    self._pieces[-1].append(delta[_PIECES[delta["type"]]])

    def blocks(self) -> list[dict[str, Any]]:
        whole = []
        for block, pieces in zip(self._blocks, self._pieces, strict=True):
            joined = "".join(pieces)
            match block["type"]:
                case "tool_use":
                    # It was checked when the block ended.
                    block["input"] = from_json(joined or "{}", allow_partial=True)
                case "text" | "thinking" as kind:
                    block[kind] = joined
            whole.append(block)
        return whole


_PIECES = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}


def stop_reason(finished: Finished, blocks: Blocks) -> str:
    """Why the message ended. Which stop string it was, a chat does not tell: such a message ends
    as one that ended by itself."""
    if blocks.refused:
        return "refusal"
    # Servers that were told which tool to call may say that they just stopped.
    if blocks.called and finished.finish_reason == "stop":
        return "tool_use"
    return _STOP_REASONS.get(finished.finish_reason, "end_turn")


def _usage(usage: Usage | None) -> dict[str, Any]:
    """The counts in Anthropic's names: there the input is without what came from a cache. Zeros
    where the upstream told none: SDKs want numbers."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    told = {
        "input_tokens": max(usage.prompt_tokens - (cached or 0), 0),
        "output_tokens": usage.completion_tokens,
    }
    if cached is not None:
        told["cache_read_input_tokens"] = cached
    thought = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    if thought is None:
        return told
    return {**told, "output_tokens_details": {"thinking_tokens": thought}}


def _detail(usage: Usage, group: str, name: str) -> int | None:
    details = usage.details.get(group)
    value = details.get(name) if isinstance(details, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _head(plan: Plan) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": plan.request.model,
    }


def _written(events: Iterable[Event]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
    )


MESSAGES = Face(MessageEvents, WholeMessage, AnthropicErrors())
