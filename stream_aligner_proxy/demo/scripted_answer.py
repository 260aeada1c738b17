"""One answer of the scripted upstream: sends what a rule says, and does what goes wrong."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from stream_aligner_proxy.demo.script import Rule, Script, resume, tokens
from stream_aligner_proxy.demo.scripted_deltas import after_text, before_text, logprobs, message

Message = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientLeft(Exception):
    """The client closed the connection."""


@dataclass(slots=True)
class Recorded:
    """One chat request. Times are seconds of the monotonic clock, None while it has not happened.

    `left_at` is set only when the client left before the answer was complete.
    """

    body: Any
    headers: dict[str, str]
    number: int
    opened_at: float
    prefix: str = ""
    pieces: list[str] = field(default_factory=list)
    closed_at: float | None = None
    left_at: float | None = None

    @property
    def sent(self) -> str:
        """The text so far."""
        return "".join(self.pieces)


class _Count:
    """How many tokens a text has that comes in pieces; the last one may still grow."""

    def __init__(self) -> None:
        self._whole = 0
        self._last = ""

    def add(self, piece: str) -> None:
        found = tokens(self._last + piece)
        if found:
            self._whole += len(found) - 1
            self._last = found[-1]

    @property
    def tokens(self) -> int:
        return self._whole + bool(self._last)


class Answer:
    """One request being answered."""

    def __init__(
        self,
        script: Script,
        request: Recorded,
        send: Send,
        gone: asyncio.Task[Message],
        *,
        hold: Callable[[], asyncio.Event],
        changed: Callable[[], None],
    ) -> None:
        self._script = script
        self._request = request
        self._send = send
        self._gone = gone
        self._hold = hold
        self._changed = changed
        self._counted = 0
        self._newline = "\n"
        self._usage: Callable[[], dict[str, int] | None] = lambda: None

    async def run(self) -> None:
        body = self._request.body
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            await respond(self._send, 400, error_body("a JSON object with messages is needed"))
            return
        last = messages[-1]
        prefix = _text(last.get("content")) if last.get("role") == "assistant" else ""
        self._request.prefix = prefix
        question: dict[str, Any] = next(
            (m for m in reversed(messages) if m.get("role") in ("user", "tool")), {}
        )
        if prefix and self._script.prefill == "rejects":
            await respond(
                self._send, 400, error_body("assistant messages cannot be continued here")
            )
            return
        seen = "" if self._script.prefill == "restarts" else prefix
        rule = self._script.choose(_text(question.get("content")), seen, body.get("seed"))
        fault = rule.fault
        if fault.stall == "headers":
            await self._wait(None)
        if fault.status is not None:
            await respond(self._send, fault.status, fault.body, fault.headers)
            return
        text, finish = self._limited(rule, resume(rule, seen))
        prompt = sum(len(tokens(_text(m.get("content")))) for m in messages)
        if prefix and self._script.prefill == "repeats":
            text = prefix + text
        if body.get("stream") and not fault.json_answer:
            await self._stream(rule, text, finish, prompt)
        else:
            await self._whole(rule, text, finish, prompt)

    def _limited(self, rule: Rule, text: str) -> tuple[str, str]:
        """The text as far as the request's limit and stop strings let it go, and why it ends."""
        body = self._request.body
        finish = "tool_calls" if rule.tool_calls else "stop"
        finish = rule.finish_reason or ("function_call" if rule.function_call else finish)
        stops = body.get("stop") or []
        cuts = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
        if found := [cut for cut in cuts if cut >= 0]:
            text, finish = text[: min(found)], "stop"
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        pieces = tokens(text)
        if limit is not None and len(pieces) > limit:
            return "".join(pieces[:limit]), "length"
        return text, finish

    async def _stream(self, rule: Rule, text: str, finish: str, prompt: int) -> None:
        fault = rule.fault
        options = self._request.body.get("stream_options") or {}
        continuous = bool(options.get("continuous_usage_stats"))
        if continuous:
            self._usage = lambda: _usage(prompt, self._counted)
        self._newline = fault.newline
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await self._raw({"type": "http.response.start", "status": 200, "headers": headers})
        if fault.stall == "first":
            await self._wait(None)
        await self._delta({"role": "assistant", "content": ""})
        self._counted += len(tokens(rule.reasoning))
        for delta in before_text(rule):
            await self._delta(delta)
        pace = self._script.pace if rule.pace is None else rule.pace
        pieces = (rule.chunk or self._script.chunk).cut(text)
        start, count = self._counted, _Count()
        for index, piece in enumerate([*pieces, None]):
            if await self._fails(rule, index):
                return
            if piece is None:
                break
            if pace:
                await self._wait(pace)
            self._request.pieces.append(piece)
            count.add(piece)
            self._counted = start + count.tokens
            await self._delta({"content": piece}, told=logprobs(piece, self._request.body))
            self._changed()
        for delta in after_text(rule):
            await self._delta(delta)
        if fault.finish:
            await self._delta({}, finish)
        if fault.linger:
            await self._wait(None)
        if options.get("include_usage"):
            await self._event(
                {**self._frame(), "choices": [], "usage": _usage(prompt, self._counted)}
            )
        if fault.done:
            await self._body(f"data: [DONE]{self._newline * 2}".encode())
        await self._raw({"type": "http.response.body", "body": b""})

    async def _whole(self, rule: Rule, text: str, finish: str, prompt: int) -> None:
        said = {
            "message": message(rule, text),
            "logprobs": logprobs(text, self._request.body),
            "finish_reason": finish,
        }
        choices = [{"index": index, **said} for index in range(self._choices)]
        usage = _usage(prompt, len(tokens(text)) + len(tokens(rule.reasoning)))
        self._request.pieces.append(text)
        frame = {**self._frame(), "object": "chat.completion", "choices": choices, "usage": usage}
        await respond(self._send, 200, frame)

    async def _fails(self, rule: Rule, sent: int) -> bool:
        """Do what goes wrong after `sent` chunks; whether that ends the answer."""
        fault = rule.fault
        if fault.hold == sent:
            await self._wait(None, self._hold())
        if fault.stall == sent:
            await self._wait(None)
        if fault.reset == sent:
            await self._reset()
            return True
        if fault.garbage_after == sent:
            await self._body(fault.garbage.encode())
        if fault.error_after == sent:
            await self._event({"error": fault.error})
            await self._raw({"type": "http.response.body", "body": b""})
            return True
        return False

    async def _reset(self) -> None:
        """Cut the connection the hard way; an ASGI server's `send` knows its transport."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is None:
            raise RuntimeError("this ASGI server does not let its connection be cut")
        transport.abort()
        await self._gone

    async def _wait(self, seconds: float | None, event: asyncio.Event | None = None) -> None:
        """Wait for the time or the event, or for the client to leave, which raises."""
        waits: set[asyncio.Task[Any]] = {self._gone}
        if event is not None:
            waits.add(asyncio.create_task(event.wait()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits - {self._gone}:
                task.cancel()
        if self._gone.done():
            raise ClientLeft

    @property
    def _choices(self) -> int:
        return self._request.body.get("n") or 1

    def _frame(self) -> dict[str, Any]:
        frame = {
            "id": f"chatcmpl-{self._request.number}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._script.model,
            "system_fingerprint": "fp_scripted",
        }
        if tier := self._request.body.get("service_tier"):
            frame["service_tier"] = tier
        return frame

    async def _delta(
        self,
        delta: dict[str, Any],
        finish: str | None = None,
        told: dict[str, Any] | None = None,
    ) -> None:
        for index in range(self._choices):
            choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}
            frame = {**self._frame(), "choices": [choice]}
            if (usage := self._usage()) is not None:
                frame["usage"] = usage
            await self._event(frame)

    async def _event(self, frame: dict[str, Any]) -> None:
        await self._body(b"data: " + orjson.dumps(frame) + (self._newline * 2).encode())

    async def _body(self, data: bytes) -> None:
        await self._raw({"type": "http.response.body", "body": data, "more_body": True})

    async def _raw(self, message: Message) -> None:
        if self._gone.done():
            raise ClientLeft
        await self._send(message)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error_body(message: str) -> dict[str, Any]:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return {"error": error}


async def respond(send: Send, status: int, body: Any, headers: dict[str, str] | Any = None) -> None:
    """One whole response: JSON, or the text as it is where `body` is text."""
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    given = {name.lower(): str(value) for name, value in dict(headers or {}).items()}
    kind = "text/plain" if isinstance(body, str) else "application/json"
    told = {"content-type": kind, "content-length": str(len(raw)), **given}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})
