"""Servers that speak OpenAI's chat API, each strict about what the real one asks for.

What a server does with a partial message, and what it refuses, is from its documentation, its
source, or a measurement on it; `KINDS` holds one record for each dialect.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.upstream.emulators.writer import Writer, count

# To a partial message: go on, answer it all again with it, begin a new answer, or a refusal.
Does = str  # "continues" | "repeats" | "restarts" | the text of a 400
_OPENAI = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "stop", "seed", "n", "user", "tools", "tool_choice"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "response_format"),
    )
)
_TOLD = "Your last message was cut off."


@dataclass(frozen=True)
class Kind:
    """`partial`: what it does with a last message of the assistant's. `told`: what it does when it
    is told to go on. `fields`: the only ones it takes, with their status for others."""

    partial: Callable[[Mapping[str, Any]], Does]
    told: Does = "continues"
    fields: frozenset[str] | None = None
    unknown_status: int = 400
    key_header: str = "authorization"
    path: str = "/v1"
    query: Mapping[str, str] = field(default_factory=dict)
    counts: bool = False  # usage with every chunk, where it is asked for


def _flags(body: Mapping[str, Any]) -> Does:
    """vLLM: both flags, or neither, and then a new turn begins in silence."""
    going_on, adding = body.get("continue_final_message"), body.get("add_generation_prompt", True)
    if going_on and adding:
        return "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
    return "continues" if going_on else "restarts"


def _sglang(body: Mapping[str, Any]) -> Does:
    return "continues" if body.get("continue_final_message") else "restarts"


def _llamacpp(body: Mapping[str, Any]) -> Does:
    alone = body.get("continue_final_message") == "content"
    return "continues" if alone and body.get("add_generation_prompt") is False else "repeats"


def _marked(name: str, does: Does, otherwise: Does) -> Callable[[Mapping[str, Any]], Does]:
    def partial(body: Mapping[str, Any]) -> Does:
        return does if body["messages"][-1].get(name) is True else otherwise

    return partial


def _deepseek(body: Mapping[str, Any]) -> Does:
    if body.get("tools"):
        return "tools are not supported with prefix"
    return _marked("prefix", "continues", "The last message must be a user message.")(body)


def _qwen(body: Mapping[str, Any]) -> Does:
    if body.get("enable_thinking") is not False:
        return "partial mode does not support thinking"
    return _marked("partial", "continues", "restarts")(body)


def always(does: Does) -> Callable[[Mapping[str, Any]], Does]:
    return lambda body: does


KINDS: Mapping[str, Kind] = {
    "vllm": Kind(_flags, counts=True),
    "sglang": Kind(_sglang, counts=True),
    "llamacpp": Kind(_llamacpp),
    "ollama": Kind(always("continues")),
    "tgi": Kind(always("continues")),
    "lmstudio": Kind(always("restarts")),
    "transformers": Kind(
        always("restarts"), fields=_OPENAI - {"stream_options"}, unknown_status=422
    ),
    "deepseek": Kind(_deepseek, path="/beta"),
    "mistral": Kind(
        _marked("prefix", "repeats", "Expected last role User or Tool"),
        fields=_OPENAI - {"stream_options", "max_completion_tokens", "logit_bias"},
        unknown_status=422,
    ),
    "kimi": Kind(_marked("partial", "continues", "restarts")),
    "qwen": Kind(_qwen),
    "openrouter": Kind(always("restarts")),
    "groq": Kind(always("continues"), fields=_OPENAI),
    "together": Kind(always("restarts")),
    "fireworks": Kind(always("continues")),
    "gemini-openai": Kind(always("Please ensure that the last turn is a user turn.")),
    "bedrock": Kind(always("restarts"), fields=_OPENAI),
    "azure": Kind(
        always("restarts"),
        fields=_OPENAI,
        key_header="api-key",
        path="/openai/deployments/m",
        query={"api-version": "2025-01-01-preview"},
    ),
    "openai": Kind(always("restarts"), fields=_OPENAI),
    "generic": Kind(always("continues"), told="overlaps"),
}


class ChatEmulator:
    """One such server: an ASGI app, and the requests it got."""

    def __init__(self, kind: Kind, key: str = "secret-key-of-the-proxy") -> None:
        self.kind = kind
        self.key = key
        self.writer = Writer()
        self.generated = 0  # tokens, over all requests
        path = f"{kind.path}/chat/completions"
        self._app = Starlette(routes=[Route(path, self._chat, methods=["POST"])])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    async def _chat(self, request: Request) -> Response:
        kind = self.kind
        key = request.headers.get(kind.key_header, "").removeprefix("Bearer ")
        if key != self.key:
            return _error(401, f"Incorrect API key provided: {key}")
        if dict(request.query_params) != dict(kind.query):
            return _error(404, "Resource not found")
        body = orjson.loads(await request.body())
        self.writer.requests.append(body)
        if kind.fields is not None and (unknown := set(body) - kind.fields):
            return _error(kind.unknown_status, f"Unexpected field {sorted(unknown)[0]!r}")
        return self._answer(body)

    def _answer(self, body: Mapping[str, Any]) -> Response:
        messages = body["messages"]
        prefix, does = "", "continues"
        if messages[-1]["role"] == "assistant":
            prefix, does = messages[-1]["content"], self.kind.partial(body)
        elif messages[-1]["content"].startswith(_TOLD):
            prefix, does = messages[-2]["content"], self.kind.told
        question = _words(next(m["content"] for m in messages if m["role"] == "user"))
        before = ""
        match does:
            case "continues":
                pass
            case "repeats":
                before = prefix
            case "restarts":
                prefix = ""
            case "overlaps":
                before = " ".join(prefix.split(" ")[-3:])
            case "remarks":
                before = "Sure, here is the rest of it:\n\n"
            case "loses the space":
                before = ""
            case refusal:
                return _error(400, refusal)
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        written = self.writer.write(question, prefix, limit, body.get("stop") or [])
        words = list(written.words)
        if does == "loses the space" and words:
            words[0] = words[0].lstrip()
        prompt = sum(count(_words(m["content"])) for m in messages)
        pieces = [*([before] if before else []), *words]
        self.generated += len(pieces)
        finish = "length" if written.end == "limit" else "stop"
        asked = body.get("stream_options") or {}

        async def events() -> AsyncIterator[str]:
            for index, piece in enumerate(pieces):
                usage = _usage(prompt, index + 1)
                running = self.kind.counts and asked.get("continuous_usage_stats")
                yield _event(_chunk({"content": piece}, None, usage if running else None))
            yield _event(_chunk({}, finish, None))
            if asked.get("include_usage") or self.kind.fields is not None:
                last = {"choices": [], "usage": _usage(prompt, len(pieces))}
                yield _event({"object": "chat.completion.chunk", **last})
            yield "data: [DONE]\n\n"

        return StreamingResponse(self.writer.stream(events), media_type="text/event-stream")


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def _chunk(delta: Any, finish: str | None, usage: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "choices": [choice], "usage": usage}


def _words(content: str | list[dict[str, Any]]) -> str:
    """Text parts joined: a picture says nothing to this model."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _event(value: Any) -> str:
    return f"data: {orjson.dumps(value).decode()}\n\n"


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "invalid_request_error", "code": None}
    return JSONResponse({"error": error}, status_code=status)
