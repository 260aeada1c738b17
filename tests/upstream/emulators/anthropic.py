"""An emulator of Anthropic's Messages API: its events, and its refusals, as documented.

`CLAUDE` takes a prefill, `NEWER` does not, nor any sampling parameter.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.upstream.emulators.writer import Writer, Written, count

CLAUDE = "claude-sonnet-4-5-20250929"
NEWER = "claude-opus-4-7"
KEY = "sk-ant-emulated-key"

_FIELDS = {"model", "max_tokens", "messages", "system", "stream", "stop_sequences", "metadata"}
_FIELDS |= {"temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "output_config"}
_BLOCKS = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source"},
    "document": {"type", "source"},
    "tool_use": {"type", "id", "name", "input"},
    "tool_result": {"type", "tool_use_id", "content"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}


class Refused(Exception):
    def __init__(self, message: str, status: int = 400, kind: str = "invalid_request_error"):
        self.body = {
            "type": "error",
            "error": {"type": kind, "message": message},
            "request_id": "req_emulated",
        }
        self.status = status


def _check(body: dict[str, Any]) -> None:
    if unknown := set(body) - _FIELDS:
        raise Refused(f"{min(unknown)}: Extra inputs are not permitted")
    if "max_tokens" not in body:
        raise Refused("max_tokens: Field required")
    temperature = body.get("temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        raise Refused("temperature: range: 0..1")
    if body["model"] == NEWER and {"temperature", "top_p", "top_k"} & set(body):
        raise Refused("`temperature` is deprecated for this model.")
    if temperature is not None and "top_p" in body:
        raise Refused("`temperature` and `top_p` cannot both be specified for this model.")
    if any(not stop.strip() for stop in body.get("stop_sequences", ())):
        raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
    for i, message in enumerate(body["messages"]):
        if set(message) != {"role", "content"} or message["role"] not in ("user", "assistant"):
            raise Refused(f"messages.{i}: malformed")
        for j, block in enumerate(message["content"]):
            _check_block(block, f"messages.{i}.content.{j}")
    for i, block in enumerate(body.get("system", ())):
        _check_block(block, f"system.{i}")
    for i, tool in enumerate(body.get("tools", ())):
        if tool.get("input_schema", {}).get("type") != "object":
            raise Refused(f"tools.{i}.input_schema.type: Field required")
    last = body["messages"][-1]
    if last["role"] == "assistant":
        if body["model"] == NEWER:
            raise Refused(
                "This model does not support assistant message prefill. "
                "The conversation must end with a user message."
            )
        if last["content"][-1].get("text", "x") != last["content"][-1].get("text", "x").rstrip():
            raise Refused("messages: final assistant content cannot end with trailing whitespace")
        if body.get("thinking", {}).get("type") == "enabled":
            raise Refused("messages: prefill is not supported with extended thinking")


def _check_block(block: dict[str, Any], place: str) -> None:
    if unknown := set(block) - _BLOCKS.get(block.get("type", ""), set()):
        raise Refused(f"{place}.{min(unknown)}: Extra inputs are not permitted")
    if block["type"] == "text" and not block["text"].strip():
        raise Refused(f"{place}: text content blocks must contain non-whitespace text")


def _text(blocks: list[dict[str, Any]]) -> str:
    return "".join(block.get("text", "") for block in blocks)


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


class AnthropicEmulator(Writer):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routes = [
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/models", self._models),
        ]
        await Starlette(routes=routes)(scope, receive, send)

    async def _messages(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        try:
            self._authorise(request)
            body = await request.json()
            self.requests.append(body)
            _check(body)
            if self.fault == "overloaded":
                raise Refused("Overloaded", 529, "overloaded_error")
        except Refused as error:
            told = {"request-id": "req_emulated"}
            if error.status == 529:
                told["retry-after"] = "7"
            return JSONResponse(error.body, error.status, told)
        if not body.get("stream"):
            return JSONResponse({**self._head(body), **self._whole(body)})
        return StreamingResponse(
            self.stream(lambda: self._events(body)), media_type="text/event-stream"
        )

    async def _models(self, request: Request) -> Response:
        try:
            self._authorise(request)
        except Refused as error:
            return JSONResponse(error.body, error.status)
        data = [
            {
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": "2025-09-29T00:00:00Z",
            }
            for name in (CLAUDE, NEWER)
        ]
        return JSONResponse({"data": data, "has_more": False, "first_id": None, "last_id": None})

    def _authorise(self, request: Request) -> None:
        if request.headers.get("x-api-key") != KEY:
            raise Refused("invalid x-api-key", 401, "authentication_error")
        if request.headers.get("anthropic-version") != "2023-06-01":
            raise Refused("anthropic-version: header is required")

    def _written(self, body: dict[str, Any]) -> Written:
        users = [m for m in body["messages"] if m["role"] == "user"]
        last = body["messages"][-1]
        prefix = _text(last["content"]) if last["role"] == "assistant" else ""
        stops = body.get("stop_sequences", [])
        return self.write(_text(users[-1]["content"]), prefix, body["max_tokens"], stops)

    def _calls_tool(self, body: dict[str, Any]) -> bool:
        choice = body.get("tool_choice", {}).get("type", "auto")
        ends_with_result = any(b["type"] == "tool_result" for b in body["messages"][-1]["content"])
        return bool(body.get("tools")) and choice != "none" and not ends_with_result

    def _head(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self._prompt(body), "output_tokens": 1},
        }

    def _prompt(self, body: dict[str, Any]) -> dict[str, int]:
        blocks = [*body.get("system", ()), *(b for m in body["messages"] for b in m["content"])]
        tokens = sum(count(block.get("text", "x")) for block in blocks)
        return {
            "input_tokens": tokens - 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 1,
        }

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        written = self._written(body)
        usage = {**self._prompt(body), "output_tokens": len(written.words)}
        content = [{"type": "text", "text": "".join(written.words)}]
        return {"content": content, "stop_reason": _REASONS[written.end], "usage": usage}

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        written = self._written(body)
        yield _event("message_start", message=self._head(body))
        yield _event("ping")
        tokens = 0
        index = 0
        if body.get("thinking", {}).get("type") == "enabled":
            block = {"type": "thinking", "thinking": "", "signature": ""}
            yield _event("content_block_start", index=0, content_block=block)
            for word in ("Let me", " count."):
                tokens += 2
                delta = {"type": "thinking_delta", "thinking": word}
                yield _event("content_block_delta", index=0, delta=delta)
            delta = {"type": "signature_delta", "signature": "EqQB"}
            yield _event("content_block_delta", index=0, delta=delta)
            yield _event("content_block_stop", index=0)
            index = 1
        if self._calls_tool(body):
            for name, pieces in (("add", ("", '{"a": ', "1}")), ("now", ("",))):
                block = {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}}
                yield _event("content_block_start", index=index, content_block=block)
                for piece in pieces:
                    tokens += 1
                    delta = {"type": "input_json_delta", "partial_json": piece}
                    yield _event("content_block_delta", index=index, delta=delta)
                yield _event("content_block_stop", index=index)
                index += 1
            reason = "tool_use"
        else:
            block = {"type": "text", "text": ""}
            yield _event("content_block_start", index=index, content_block=block)
            for i, word in enumerate(written.words):
                tokens += 1
                delta = {"type": "text_delta", "text": word}
                yield _event("content_block_delta", index=index, delta=delta)
                if i == 2 and self.fault == "overloaded within":
                    error = {"type": "overloaded_error", "message": "Overloaded"}
                    yield _event("error", error=error)
                    return
                if i == 2 and self.fault == "hangs":
                    await anyio.sleep_forever()
                yield _event("something_new", detail="clients must pass it over")
            yield _event("content_block_stop", index=index)
            reason = _REASONS[written.end]
        delta = {"stop_reason": reason, "stop_sequence": written.stop}
        yield _event("message_delta", delta=delta, usage={"output_tokens": tokens})
        yield _event("message_stop")


_REASONS = {"end": "end_turn", "stop": "stop_sequence", "limit": "max_tokens"}
