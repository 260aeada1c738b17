"""An upstream that completes prompts and does not chat, and a proxy in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.demo.script import Chunking, Rule, resume, tokens
from tests.api.proxy import settings
from tests.fakes import FunctionAligner
from tests.servers import serve


@dataclass
class PromptServer:
    """Writes on the prompts of `replies`, also behind a part of what it may write. Keeps the bodies
    it was sent to `/completions`."""

    replies: Mapping[str, str]
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "scripted"}]})

    async def _complete(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        self.bodies.append(body)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        if isinstance(prompts[0], int):
            prompts = [prompts]
        written = [
            self._write(prompt, body) for prompt in prompts for _ in range(body.get("n") or 1)
        ]
        if body.get("stream"):
            return StreamingResponse(
                self._frames(written, body), media_type="text/event-stream; charset=utf-8"
            )
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
            for index, (text, finish, _) in enumerate(written)
        ]
        usage = _usage(written)
        return JSONResponse({**_HEAD, "choices": choices, "usage": usage})

    def _write(self, prompt: Any, body: dict[str, Any]) -> tuple[str, str, int]:
        """The new text, why it ends, and the tokens of the prompt."""
        if not isinstance(prompt, str):
            return " ids", "stop", len(prompt)
        known = max((p for p in self.replies if prompt.startswith(p)), key=len)
        text = resume(Rule(self.replies[known]), prompt[len(known) :])
        pieces, limit = tokens(text), body.get("max_tokens", 16)
        if len(pieces) > limit:
            return "".join(pieces[:limit]), "length", len(tokens(prompt))
        return text, "stop", len(tokens(prompt))

    async def _frames(
        self, written: list[tuple[str, str, int]], body: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        for index, (text, finish, _) in enumerate(written):
            for piece in Chunking().cut(text):
                yield _frame({"index": index, "text": piece, "finish_reason": None})
            yield _frame({"index": index, "text": "", "finish_reason": finish})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event({**_HEAD, "choices": [], "usage": _usage(written)})
        yield b"data: [DONE]\n\n"


_HEAD = {"id": "cmpl-theirs", "object": "text_completion", "created": 1, "model": "scripted"}


def _event(frame: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(frame) + b"\n\n"


def _frame(choice: dict[str, Any]) -> bytes:
    return _event({**_HEAD, "choices": [choice]})


def _usage(written: list[tuple[str, str, int]]) -> dict[str, int]:
    prompt, completion = sum(w[2] for w in written), sum(len(tokens(w[0])) for w in written)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**counts, "total_tokens": prompt + completion}


@asynccontextmanager
async def prompted(
    replies: Mapping[str, str], aligner: Aligner | None = None, **sections: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, PromptServer]]:
    """A client of the proxy, and the server behind it."""
    server = PromptServer(replies)
    async with serve(server.app) as behind:
        app = create_app(settings(behind, **sections), aligner=aligner or FunctionAligner())
        async with serve(app) as address, httpx.AsyncClient(base_url=address) as client:
            yield client, server
