"""The embedded upstream: a small causal LM behind OpenAI's API, with vLLM's way of continuing.

Run it with `python -m stream_aligner_proxy.demo.upstream --port N [--model DIR]`. Serves chat and
text completions, `/v1/models`, `/tokenize`, `/health`, and `/metrics` with the number of running
requests. A client that leaves stops its request within a token.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from transformers.utils import logging

from stream_aligner_proxy.core.errors import ConfigError, ProxyError, RequestError
from stream_aligner_proxy.demo import serving
from stream_aligner_proxy.demo.asking import Asked, chat_prompt, read, text_prompt
from stream_aligner_proxy.demo.engine import Engine, Job, Piece

DEFAULT_MODEL = Path(__file__).parent / "models" / "upstream"


class _Reply(Response):
    """Runs one generation and sends it, as one object or as a stream, until the client leaves."""

    def __init__(self, engine: Engine, asked: Asked, model: str, *, chat: bool) -> None:
        self._engine = engine
        self._asked = asked
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if asked.stream and chat else kind,
            "created": int(time.time()),
            "model": model,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def deliver(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = Job(self._asked.prompt, self._asked.sampling, deliver)
        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(lambda _: pieces.put_nowait(None))
        self._engine.submit(job)
        try:
            if self._asked.stream:
                await self._stream(pieces, send)
            else:
                await self._whole(pieces, send)
        finally:
            self._engine.cancel(job)
            gone.cancel()

    async def _whole(self, pieces: asyncio.Queue[Piece | None], send: Send) -> None:
        text = ""
        while (piece := await pieces.get()) is not None:
            text += piece.text
            if piece.finish is not None:
                break
        else:
            return
        if piece.finish == "error":
            error = ProxyError("the model failed")
            await _send_json(send, 500, error.body())
            return
        body = {
            **self._frame,
            "choices": [self._choice(text, piece.finish, whole=True)],
            "usage": self._usage(piece.tokens),
        }
        await _send_json(send, 200, body)

    async def _stream(self, pieces: asyncio.Queue[Piece | None], send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}}
            await self._event(send, {**first, "logprobs": None, "finish_reason": None}, 0)
        while (piece := await pieces.get()) is not None:
            if piece.finish == "error":
                await _send_data(send, orjson.dumps(ProxyError("the model failed").body()))
                break
            await self._event(send, self._choice(piece.text, piece.finish), piece.tokens)
            if piece.finish is None:
                continue
            if self._asked.include_usage:
                last = {**self._frame, "choices": [], "usage": self._usage(piece.tokens)}
                await _send_data(send, orjson.dumps(last))
            await _send_data(send, b"[DONE]")
            break
        else:
            return
        await send({"type": "http.response.body", "body": b""})

    async def _event(self, send: Send, choice: dict[str, Any], tokens: int) -> None:
        frame = {**self._frame, "choices": [choice]}
        if self._asked.continuous_usage and self._asked.include_usage:
            frame["usage"] = self._usage(tokens)
        elif self._asked.include_usage:
            frame["usage"] = None
        await _send_data(send, orjson.dumps(frame))

    def _choice(self, text: str, finish: str | None, *, whole: bool = False) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if not self._chat:
            choice["text"] = text
        elif whole:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["delta"] = {"content": text}
        return choice

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = len(self._asked.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }


def build_app(engine: Engine, model: str = "demo-upstream") -> Starlette:
    """The server around an engine, which it starts and closes."""

    async def generate(request: Request, *, chat: bool) -> Response:
        body = await _json(request)
        asked = read(body, engine.tokens, model=model, context=engine.context, chat=chat)
        return _Reply(engine, asked, model, chat=chat)

    async def chat_completions(request: Request) -> Response:
        return await generate(request, chat=True)

    async def completions(request: Request) -> Response:
        return await generate(request, chat=False)

    async def models(_: Request) -> Response:
        entry = {
            "id": model,
            "object": "model",
            "owned_by": "stream-aligner-proxy",
            "max_model_len": engine.context,
        }
        return JSONResponse({"object": "list", "data": [entry]})

    async def tokenize(request: Request) -> Response:
        body = await _json(request)
        if not isinstance(body, dict):
            raise RequestError("the body must be a JSON object")
        make = chat_prompt if "messages" in body else text_prompt
        ids = make(body, engine.tokens)
        told = {"count": len(ids), "max_model_len": engine.context, "tokens": ids}
        return JSONResponse(told)

    async def health(_: Request) -> Response:
        return JSONResponse({})

    async def metrics(_: Request) -> Response:
        name = "demo_upstream_requests_running"
        return PlainTextResponse(f"# TYPE {name} gauge\n{name} {engine.running}\n")

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, ProxyError)
        return JSONResponse(error.body(), status_code=error.status)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={ProxyError: refuse},
        lifespan=lifespan,
    )


async def _json(request: Request) -> Any:
    try:
        return orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise RequestError("the body is not valid JSON") from error


async def _send_json(send: Send, status: int, body: dict[str, Any]) -> None:
    raw = orjson.dumps(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(raw)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


async def _send_data(send: Send, data: bytes) -> None:
    frame = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": frame, "more_body": True})


def main() -> None:
    """Serve one model until interrupted."""
    parser = argparse.ArgumentParser(description="The embedded demo upstream.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model directory")
    parser.add_argument("--name", default="demo-upstream", help="the model id to serve it as")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001, help="0 picks a free one")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--tokens-per-second", type=float, default=None, help="pace per request")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        engine = Engine(
            arguments.model,
            threads=arguments.threads,
            tokens_per_second=arguments.tokens_per_second,
        )
    except ConfigError as error:
        sys.exit(str(error))
    what = f"{arguments.name} ({engine.parameters / 1e6:.1f}M parameters)"
    serving.run(build_app(engine, arguments.name), arguments.host, arguments.port, what)


if __name__ == "__main__":
    main()
