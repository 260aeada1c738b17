"""A small real server with `/v1/completions` in front of a tiny model: greedy, streamed, with token
ids and log-probabilities, and less of each where a test wants less. Also a program:

    python -m tests.aligners.completion_server      # prints its address, then serves
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stream_aligner_proxy.aligners.checkpoint import Checkpoint

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "top_p", "stream", "seed"}
OPENAI_FIELDS |= {"logprobs", "stop", "logit_bias"}


@dataclass
class CompletionServer:
    """`ids`: it knows `return_token_ids`. `chances`: most log-probabilities, 0 for none; more are a
    400. `named`: they come with tokens' texts instead of ids. `shows`: it can show special tokens
    in text. `strict`: fields that OpenAI does not have are a 400. `answers`: what the next requests
    for a completion get instead of one. `gate`: waited for before each token but the first
    `ungated`."""

    checkpoint: Checkpoint
    model: str = "tiny"
    ids: bool = True
    chances: int = 20
    named: bool = False
    shows: bool = True
    strict: bool = False
    lists_models: bool = True
    window: int | None = 512
    key: str | None = None
    answers: list[Response] = field(default_factory=list)
    gate: asyncio.Event | None = None
    ungated: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    pings: int = 0
    running: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait, with a bound, until something about the server holds."""
        async with asyncio.timeout(20):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    def _told(self) -> None:
        self.changed.set()

    async def _models(self, request: Request) -> Response:
        self.pings += 1
        self._told()
        if refusal := self._refusal(request):
            return refusal
        if not self.lists_models:
            return JSONResponse({"detail": "Not Found"}, 404)
        model = {"id": self.model, "object": "model", "max_model_len": self.window}
        return JSONResponse({"object": "list", "data": [model]})

    async def _complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self._told()
        if self.answers:
            return self.answers.pop(0)
        if refusal := self._refusal(request) or self._dislike(body):
            return refusal
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    def _refusal(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            # Some servers say which key they were given.
            return _error(401, f"no such key: {request.headers.get('authorization')}")
        return None

    def _dislike(self, body: dict[str, Any]) -> Response | None:
        if body["model"] != self.model:
            return _error(404, "no such model")
        if self.strict and not body.keys() <= OPENAI_FIELDS:
            return _error(400, "unknown field")
        if body.get("logprobs", 0) > self.chances:
            return _error(400, f"at most {self.chances} logprobs")
        longest = self.window or 1 << 20
        if len(body["prompt"]) + body["max_tokens"] > longest:
            return _error(400, f"at most {longest} tokens")
        return None

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self.running += 1
        self._told()
        try:
            for number, choice in enumerate(self._tokens(body)):
                if self.gate is not None and number >= self.ungated:
                    await self.gate.wait()
                yield f"data: {json.dumps({'model': self.model, 'choices': [choice]})}\n\n"
                await asyncio.sleep(0)
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1
            self._told()

    def _tokens(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        words, ends = self.checkpoint.tokenizer, set(self.checkpoint.ends)
        ends |= set(body.get("stop_token_ids", ()))
        skip = body.get("skip_special_tokens", True) or not self.shows
        ids, written, shown = list(body["prompt"]), [], ""
        while True:
            logits = self.logits(ids)
            for token, bias in body.get("logit_bias", {}).items():
                logits[int(token)] += bias
            token = int(logits.argmax())
            ids.append(token)
            written.append(token)
            over = token in ends
            text = words.decode(
                written[:-1] if over else written,
                skip_special_tokens=skip,
                clean_up_tokenization_spaces=False,
            )
            new = "" if text.endswith("\ufffd") and not over else text[len(shown) :]
            shown += new
            choice: dict[str, Any] = {"index": 0, "text": new, "finish_reason": None}
            if over:
                choice["finish_reason"] = "stop"
            elif len(written) == body["max_tokens"]:
                choice["finish_reason"] = "length"
            if self.ids and body.get("return_token_ids"):
                choice["token_ids"] = [token]
            if body.get("logprobs"):
                choice["logprobs"] = self._logprobs(logits, token, body)
            yield choice
            if choice["finish_reason"]:
                return

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.checkpoint.model(input_ids=torch.tensor([ids])).logits
        return logits[0, -1].clone()

    def _logprobs(self, logits: torch.Tensor, token: int, body: dict[str, Any]) -> dict[str, Any]:
        chances, tokens = logits.log_softmax(-1).topk(body["logprobs"])
        by_id = not self.named and body.get("return_tokens_as_token_ids")
        words = self.checkpoint.tokenizer

        def name(token: int) -> str:
            return f"token_id:{token}" if by_id else words.decode([token])

        top = {name(t): c for t, c in zip(tokens.tolist(), chances.tolist(), strict=True)}
        return {"tokens": [name(token)], "token_logprobs": [0.0], "top_logprobs": [top]}


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status)


class FaultyLine:
    """A TCP line to a server that cuts connections: `plan` holds, for each coming connection, how
    many bytes of answers pass before it is cut (None: all). What comes after passes."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self.plan: list[int | None] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse connections, and cut those there are."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await server.wait_closed()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            await self._carry_one(reader, writer)
        finally:
            self._carrying.discard(task)

    async def _carry_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.plan.pop(0) if self.plan else None
        self._open.add(writer)
        there: asyncio.StreamWriter | None = None
        forward: asyncio.Task[None] | None = None
        try:
            back, there = await asyncio.open_connection(*self._target)
            forward = asyncio.create_task(_pump(reader, there))
            while data := await back.read(65536):
                if left is not None and len(data) >= left:
                    writer.write(data[:left])
                    if left:
                        await writer.drain()
                    break
                left = None if left is None else left - len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            if forward is not None:
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
            for end in (writer, there):
                if end is not None:
                    await _closed(end)
            self._open.discard(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        return


@asynccontextmanager
async def faulty_line(address: str) -> AsyncIterator[FaultyLine]:
    line = FaultyLine(address)
    await line.up()
    try:
        yield line
    finally:
        await line.down()


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        sys.stdout.write(f"http://127.0.0.1:{port}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    from tests.aligners.models import trained

    torch.set_num_threads(1)
    config = uvicorn.Config(CompletionServer(trained()).app, port=0, log_level="error")
    _Announcing(config).run()
