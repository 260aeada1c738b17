"""A server that answers chats and completions with one text, and keeps what it was sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.servers import serve


@dataclass
class CompletingServer:
    reply: str
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def running(cls, reply: str) -> AsyncIterator[tuple["CompletingServer", str]]:
        """The server, and its address."""
        server = cls(reply)
        routes = [
            Route("/v1/chat/completions", server._chat, methods=["POST"]),
            Route("/v1/completions", server._completions, methods=["POST"]),
        ]
        async with serve(Starlette(routes=routes)) as address:
            yield server, address

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"delta": {"content": text}})

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"text": text})

    async def _answer(self, request: Request, choice) -> Response:
        self.bodies.append(orjson.loads(await request.body()))

        async def frames() -> AsyncIterator[bytes]:
            for word in self.reply.split(" "):
                if word:
                    yield _frame(choice(" " + word) | {"index": 0, "finish_reason": None})
            yield _frame(choice("") | {"index": 0, "finish_reason": "stop"})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(frames(), media_type="text/event-stream")


def _frame(choice: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps({"id": "x", "choices": [choice]}) + b"\n\n"
