"""A proxy with routes, queues and faults, and traffic that makes every kind of metric move."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from stream_aligner_proxy.aligners.queueing import Queue
from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import build
from tests.fakes import FunctionAligner
from tests.servers import refused_address, serve
from tests.waiting import until

SECRET = "a private sentence"
MODEL = "scripted"
RULES = (
    Rule("This cannot be judged. Nor this.", when="fail"),
    Rule(" She is well.", when="break", after="apples"),
    Rule(
        "Anna has 3 apples. She breaks off here, in the midst", when="break", fault=Fault(reset=6)
    ),
    Rule("Never.", when="refuse", fault=Fault(status=400)),
    Rule("Never written.", when="hold the first", fault=Fault(hold=0)),
    Rule(f"One is here, {SECRET}. Two is not here yet. Three.", when="hold", fault=Fault(hold=9)),
    Rule("The sum is 13. All is well."),
)


def _judge(review: Review) -> Verdict:
    if "judged" in review.sentence:
        raise ReviewError("the aligner cannot")
    if "13" in review.sentence:
        return Verdict(review.sentence.replace("13", "12"), prompt_tokens=9, completion_tokens=4)
    return Verdict(prompt_tokens=9, completion_tokens=1)


class QueuedAligner(FunctionAligner):
    """Two reviews at a time."""

    def __init__(self) -> None:
        super().__init__(_judge)
        self.queue = Queue(2)

    async def review(self, review: Review, progress: Any = None) -> Verdict:
        async with self.queue.place():
            return await super().review(review, progress)


@dataclass
class Busy:
    """A client of the proxy, and what is behind it."""

    client: httpx.AsyncClient
    upstream: ScriptedUpstream
    app: FastAPI
    address: str

    def body(self, question: str, **fields: Any) -> dict[str, Any]:
        return {"model": MODEL, "messages": [{"role": "user", "content": question}]} | fields

    async def ask(self, question: str = "sum", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=self.body(question, **fields))

    async def leave(self, question: str, *, after_text: bool) -> None:
        """Be gone while the upstream writes, and wait until it has noticed."""
        opened = self.upstream.opened

        async def asked() -> None:
            async with self.client.stream(
                "POST", "/v1/chat/completions", json=self.body(question, stream=True)
            ) as response:
                async for line in response.aiter_lines():
                    if after_text and "One is here" in line:
                        return

        task = asyncio.create_task(asked())
        await self.upstream.until(lambda up: up.opened > opened)
        if after_text:
            await task
        else:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.upstream.until(lambda up: not up.running)

    async def drive(self) -> None:
        """Everything once, or more often."""
        for mode in ("stream", "shadow", "whole", "off"):
            assert (await self.ask(stream_aligner={"mode": mode})).status_code == 200
            assert (await self.ask(stream=True, stream_aligner={"mode": mode})).status_code == 200
        assert (await self.ask("sum", model="loose-one")).status_code == 200
        assert (await self.ask("fail", model="loose-one")).status_code == 200  # fails open
        assert (await self.ask("fail")).status_code == 502
        assert (await self.ask("break")).status_code == 200
        assert (await self.ask(model="nobody")).status_code == 404
        assert (await self.ask(model="away")).status_code == 200  # by its fallback
        aligned = {"question": "How many?", "answer": "It is 13. Yes."}
        assert (await self.client.post("/v1/align", json=aligned)).status_code == 200
        await self.leave("hold the first", after_text=False)
        await self.leave("hold", after_text=True)

    async def metrics(self) -> str:
        answer = await self.client.get("/metrics")
        assert answer.status_code == 200
        return answer.text


def config(behind: str, **server: Any) -> dict[str, Any]:
    def upstream(name: str, address: str) -> dict[str, Any]:
        return {
            "name": name,
            "base_url": f"{address}/v1",
            "dialect": "vllm",
            "probe": False,
            "models": [MODEL],
            "timeouts": {"connect": 1, "first_byte": 5, "between_chunks": 5, "total": 10},
        }

    main = {"upstream": "main", "model": MODEL}
    return {
        "upstreams": [upstream("main", behind), upstream("away", refused_address())],
        "aligner": {"backend": "rules", "path": str(Path(__file__))},
        "routes": [
            {"model": MODEL, "to": [main]},
            {"model": "loose-*", "to": [main], "alignment": {"fail_open": True, "lookahead": 1}},
            {"model": "away", "to": [{"upstream": "away", "model": MODEL}], "fallback": [main]},
        ],
        "server": server,
    }


@asynccontextmanager
async def busy(**server: Any) -> AsyncIterator[Busy]:
    async with busy_with(config, **server) as proxy:
        yield proxy


@asynccontextmanager
async def busy_with(make: Any, **server: Any) -> AsyncIterator[Busy]:
    """The proxy of the configuration that `make` gives."""
    upstream = ScriptedUpstream(Script(RULES))
    async with serve(upstream) as behind:
        settings: Mapping[str, Any] = make(behind, **server)
        app = create_app(build(settings), aligner=QueuedAligner())
        async with serve(app) as address, httpx.AsyncClient(base_url=address, timeout=20) as client:
            yield Busy(client, upstream, app, address)


__all__ = ["Busy", "busy", "busy_with", "until"]
