"""From Gemini's GenerateContentResponses to `Chunk`s. Pure: no I/O.

Each event of the stream is a whole response with what is new; the counts in it are those so far.
There is no end marker: the stream ends after the response that tells the finish reason.
Sources: Google's Gemini API reference (GenerateContentResponse, Candidate, UsageMetadata) and its
guides to thinking, function calling and thought signatures.
"""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import Chunk, Usage
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.rejections import Refusals

_LENGTH = "MAX_TOKENS"
_FILTERED = frozenset(
    (
        "BLOCKLIST",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "IMAGE_SAFETY",
        "LANGUAGE",
        "MODEL_ARMOR",
        "PROHIBITED_CONTENT",
        "RECITATION",
        "SAFETY",
        "SPII",
    )
)
# What the model wrote was no usable call: asking again may do.
_BROKEN = frozenset(("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"))


class GeminiReader:
    """Turns one branch's responses into chunks.

    A text's tokens are the growth of the candidate's running count, or 1 where a response has none;
    those of thinking count with the thoughts that are told, and in the usage either way.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._counted = 0
        self._thoughts = 0
        self._calls = 0
        self.finished = False

    def read(self, event: SseEvent) -> Iterator[Chunk]:
        """The chunks of one event."""
        yield from self.read_object(parse_object(event.data), event.event)

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]:
        """The chunks of one parsed response: a piece of a stream, or all of it."""
        if frame.get("error"):
            raise self._refusals.from_frame(frame)
        counts = frame.get("usageMetadata")
        usage = _usage(counts) if isinstance(counts, dict) else None
        candidates = frame.get("candidates")
        if not candidates:
            yield from self._without_candidate(frame, usage)
            return
        candidate = candidates[0] if isinstance(candidates, list) else None
        if not isinstance(candidate, dict) or candidate.get("index"):
            raise UpstreamGarbled("the upstream sent candidates that were not asked for")
        texts, thoughts = self._growth(counts if isinstance(counts, dict) else {})
        for part in (candidate.get("content") or {}).get("parts") or ():
            chunk = self._part(part)
            if chunk is None:
                continue
            # One response may hold several parts: the first of each kind has all the tokens.
            if "reasoning_content" in (chunk.part or ()):
                tokens, thoughts = thoughts, 0
            else:
                tokens, texts = texts, 0
            yield Chunk(chunk.text, chunk.part, tokens=tokens)
        yield from self._end(candidate.get("finishReason"), usage)

    def _end(self, reason: object, usage: Usage | None) -> Iterator[Chunk]:
        if reason in _BROKEN:
            raise UpstreamGarbled(f"the upstream broke off its reply: {reason}")
        finish = None
        if reason:
            self.finished = True
            if reason == _LENGTH:
                finish = "length"
            elif reason in _FILTERED:
                finish = "content_filter"
            else:
                finish = "tool_calls" if self._calls else "stop"
        if finish or usage is not None:
            yield Chunk(finish_reason=finish, usage=usage, tokens=0)

    def _without_candidate(self, frame: Mapping[str, Any], usage: Usage | None) -> Iterator[Chunk]:
        feedback = frame.get("promptFeedback")
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self.finished = True
            yield Chunk(finish_reason="content_filter", usage=usage, tokens=0)
        elif "usageMetadata" not in frame and "responseId" not in frame:
            raise UpstreamGarbled("the upstream sent an object that is not a response")
        elif usage is not None:
            yield Chunk(usage=usage, tokens=0)

    def _part(self, part: object) -> Chunk | None:
        if not isinstance(part, dict):
            raise UpstreamGarbled("the upstream sent a part that is not an object")
        text = part.get("text")
        if isinstance(text, str) and text:
            return Chunk(part={"reasoning_content": text}) if part.get("thought") else Chunk(text)
        if isinstance(call := part.get("functionCall"), dict):
            return Chunk(part={"tool_calls": [self._call(call, part.get("thoughtSignature"))]})
        if isinstance(data := part.get("inlineData"), dict):
            url = f"data:{data.get('mimeType')};base64,{data.get('data')}"
            return Chunk(part={"images": [{"type": "image_url", "image_url": {"url": url}}]})
        return None

    def _call(self, call: Mapping[str, Any], signature: object) -> dict[str, Any]:
        """A tool call comes whole. Its signature goes where Google's own OpenAI endpoint has it, so
        that a client that sends the message back sends the signature too."""
        told: dict[str, Any] = {
            "index": self._calls,
            "id": call.get("id") or f"call_{uuid.uuid4().hex}",
            "type": "function",
            "function": {
                "name": call.get("name"),
                "arguments": orjson.dumps(call.get("args") or {}).decode(),
            },
        }
        if isinstance(signature, str):
            told["extra_content"] = {"google": {"thought_signature": signature}}
        self._calls += 1
        return told

    def _growth(self, counts: Mapping[str, Any]) -> tuple[int, int]:
        """New tokens of text and of thinking."""
        thoughts = max(counts.get("thoughtsTokenCount", 0) - self._thoughts, 0)
        self._thoughts += thoughts
        so_far = counts.get("candidatesTokenCount")
        texts = 1 if so_far is None else max(so_far - self._counted, 0)
        self._counted += texts
        return texts, thoughts


def _usage(counts: Mapping[str, Any]) -> Usage | None:
    """The counts in OpenAI's names: there thinking is part of the completion. None where only the
    prompt was counted."""
    if "candidatesTokenCount" not in counts and "thoughtsTokenCount" not in counts:
        return None
    thoughts = counts.get("thoughtsTokenCount", 0)
    return Usage(
        counts.get("promptTokenCount", 0) + counts.get("toolUsePromptTokenCount", 0),
        counts.get("candidatesTokenCount", 0) + thoughts,
        {
            "prompt_tokens_details": {"cached_tokens": counts.get("cachedContentTokenCount", 0)},
            "completion_tokens_details": {"reasoning_tokens": thoughts},
        },
    )
