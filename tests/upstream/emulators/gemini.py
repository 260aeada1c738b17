"""An emulator of Gemini's streamGenerateContent: its responses, and its refusals, as documented.

`GEMINI` takes a last turn of the model, `NEWER` does not.
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

GEMINI = "gemini-2.5-flash"
NEWER = "gemini-3.8-flash"
KEY = "AIza-emulated-key"

_FIELDS = {"contents", "systemInstruction", "generationConfig", "tools", "toolConfig"}
_CONFIG = {"maxOutputTokens", "temperature", "topP", "topK", "stopSequences", "seed"}
_CONFIG |= {"presencePenalty", "frequencyPenalty", "responseMimeType", "responseJsonSchema"}
_CONFIG |= {"thinkingConfig"}
_PARTS = {"text", "inlineData", "functionCall", "functionResponse", "thoughtSignature"}
_WORDS_AT_ONCE = 3


class Refused(Exception):
    def __init__(self, message: str, code: int = 400, status: str = "INVALID_ARGUMENT"):
        self.code = code
        self.error: dict[str, Any] = {"code": code, "message": message, "status": status}


def _unknown(found: Any, known: set[str], place: str) -> None:
    if unknown := set(found) - known:
        name = min(unknown)
        raise Refused(f"Invalid JSON payload received. Unknown name \"{name}\" at '{place}'")


def _check(body: dict[str, Any], model: str) -> None:
    _unknown(body, _FIELDS, "")
    config = body.get("generationConfig", {})
    _unknown(config, _CONFIG, "generation_config")
    if len(config.get("stopSequences", ())) > 5:
        raise Refused("The maximum number of stop sequences is 5")
    if not 0 <= config.get("temperature", 0) <= 2:
        raise Refused("temperature must be in the range [0.0, 2.0]")
    if model == NEWER and "thinkingBudget" in config.get("thinkingConfig", {}):
        raise Refused("thinking_budget is not supported for this model")
    for i, content in enumerate(body["contents"]):
        if content["role"] not in ("user", "model"):
            raise Refused("Please use a valid role: user, model.")
        if not content["parts"]:
            raise Refused(f"contents[{i}].parts must not be empty")
        for part in content["parts"]:
            _unknown(part, _PARTS, f"contents[{i}].parts")
            if model == NEWER and "functionCall" in part and "thoughtSignature" not in part:
                raise Refused("Function call is missing a thought_signature")
    if body["contents"][-1]["role"] == "model" and model == NEWER:
        raise Refused("Requests ending with a model turn are not supported.")


def _text(content: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in content["parts"])


class GeminiEmulator(Writer):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        routes = [
            Route("/v1beta/models/{model}:streamGenerateContent", self._stream, methods=["POST"]),
            Route("/v1beta/models", self._models),
        ]
        await Starlette(routes=routes)(scope, receive, send)

    async def _stream(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        model = request.path_params["model"]
        try:
            self._authorise(request)
            body = await request.json()
            self.requests.append(body)
            if model not in (GEMINI, NEWER):
                raise Refused(f"models/{model} is not found", 404, "NOT_FOUND")
            _check(body, model)
            if self.fault == "overloaded":
                error = Refused("Resource has been exhausted", 429, "RESOURCE_EXHAUSTED")
                kind = "type.googleapis.com/google.rpc.RetryInfo"
                error.error["details"] = [{"@type": kind, "retryDelay": "6.5s"}]
                raise error
        except Refused as refused:
            return JSONResponse({"error": refused.error}, refused.code)
        assert request.query_params.get("alt") == "sse"
        return StreamingResponse(
            self.stream(lambda: self._events(body)), media_type="text/event-stream"
        )

    async def _models(self, request: Request) -> Response:
        try:
            self._authorise(request)
        except Refused as refused:
            return JSONResponse({"error": refused.error}, refused.code)
        methods = ["generateContent"]
        models = [
            {"name": f"models/{name}", "supportedGenerationMethods": methods}
            for name in (GEMINI, NEWER)
        ]
        return JSONResponse({"models": models})

    def _authorise(self, request: Request) -> None:
        key = request.headers.get("x-goog-api-key")
        if key is None:
            raise Refused("Method doesn't allow unregistered callers", 403, "PERMISSION_DENIED")
        if key != KEY:
            refused = Refused("API key not valid. Please pass a valid API key.")
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            refused.error["details"] = [{"@type": kind, "reason": "API_KEY_INVALID"}]
            raise refused

    def _written(self, body: dict[str, Any]) -> Written:
        contents = body["contents"]
        users = [content for content in contents if content["role"] == "user"]
        prefix = _text(contents[-1]) if contents[-1]["role"] == "model" else ""
        config = body.get("generationConfig", {})
        limit, stops = config.get("maxOutputTokens"), config.get("stopSequences", [])
        return self.write(_text(users[-1]), prefix, limit, stops)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        config = body.get("generationConfig", {})
        prompt = sum(count(_text(content)) for content in body["contents"])
        usage: dict[str, int] = {"promptTokenCount": prompt}

        def event(parts: list[dict[str, Any]], **candidate: Any) -> str:
            content = {"role": "model", "parts": parts}
            response = {
                "candidates": [{"content": content, "index": 0, **candidate}],
                "usageMetadata": {**usage, "totalTokenCount": sum(usage.values())},
                "responseId": "r1",
            }
            return f"data: {json.dumps(response)}\r\n\r\n"

        question = _text(body["contents"][0])
        if "forbidden" in question:
            blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
            yield f"data: {json.dumps(blocked)}\r\n\r\n"
            return
        if config.get("thinkingConfig", {}).get("thinkingBudget", 0) > 0:
            usage["thoughtsTokenCount"] = 4
            yield event([{"text": "Let me count.", "thought": True}])
        answers = any("functionResponse" in part for part in body["contents"][-1]["parts"])
        if body.get("tools") and not answers:
            usage["candidatesTokenCount"] = 9
            first = {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "CiQB"}
            second = {"functionCall": {"id": "now-1", "name": "now", "args": {}}}
            yield event([first, second])
            yield event([{"text": ""}], finishReason="STOP")
            return
        written = self._written(body)
        usage["candidatesTokenCount"] = 0
        for i in range(0, len(written.words), _WORDS_AT_ONCE):
            words = written.words[i : i + _WORDS_AT_ONCE]
            usage["candidatesTokenCount"] += len(words)
            yield event([{"text": "".join(words)}])
            if self.fault == "overloaded within":
                error = {
                    "code": 503,
                    "message": "The model is overloaded.",
                    "status": "UNAVAILABLE",
                }
                yield f"data: {json.dumps({'error': error})}\r\n\r\n"
                return
            if self.fault == "hangs":
                await anyio.sleep_forever()
        reason = {"end": "STOP", "stop": "STOP", "limit": "MAX_TOKENS"}[written.end]
        if "recite" in question:
            reason = "RECITATION"
        yield event([], finishReason=reason)
