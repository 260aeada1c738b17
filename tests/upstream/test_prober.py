"""Finding out in the background how an upstream continues, and telling it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stream_aligner_proxy.core.errors import ContinuationFailed
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.demo.script import parse
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream import prober as prober_module
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.prober import Prober
from tests.servers import refused_address, serve
from tests.waiting import until

pytestmark = pytest.mark.anyio
REPLY = "The three ducks are here. Two more will come."


@asynccontextmanager
async def probed(
    prefill: str = "continues", dialect: str = "generic", **options: Any
) -> AsyncIterator[tuple[HttpUpstream, Prober, ScriptedUpstream]]:
    server = ScriptedUpstream(parse({"prefill": prefill, "rules": [{"reply": REPLY}]}))
    async with serve(server) as address:
        upstream = HttpUpstream("main", f"{address}/v1", dialect)
        prober = Prober(upstream, **options)
        try:
            yield upstream, prober, server
        finally:
            await prober.close()
            await upstream.aclose()


@pytest.mark.parametrize(
    ("does", "way"),
    [
        ("continues", "prefill"),
        ("repeats", "prefill"),
        ("restarts", "instruct"),
        ("rejects", "instruct"),
    ],
)
async def test_what_is_found_is_told_and_used(does: str, way: str) -> None:
    async with probed(does) as (_, prober, _):
        assert prober.state["class"] == "unknown"
        assert prober.state["probed_at"] is None
        prober.start()
        await until(lambda: prober.state["probed_at"] is not None)
        state = prober.state
        assert (state["class"], state["way"], state["error"]) == (does, way, None)
        assert state["sure"] is (way == "prefill")


async def test_nothing_waits_for_it_and_closing_ends_it() -> None:
    async with probed() as (_, prober, server):
        async with asyncio.timeout(5):
            prober.start()
            await prober.close()
        assert server.opened <= 1


async def test_where_nothing_can_be_found_out_nothing_is_asked() -> None:
    async with probed(dialect="openai") as (_, prober, server):
        prober.start()
        await asyncio.sleep(0)
        assert not prober.enabled
        assert server.opened == 0
    async with probed(enabled=False) as (_, prober, server):
        prober.start()
        assert server.opened == 0


async def test_a_failed_continuation_has_it_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "_FIRST_PAUSE", 0.01)
    async with probed("continues", model="m") as (upstream, prober, server):
        prober.start()
        await until(lambda: prober.state["class"] == "continues")
        asked = server.opened
        upstream.ways.refute("m", "prefill")
        assert prober.state["way"] == "instruct"
        await until(lambda: prober.state["class"] == "continues")
        assert prober.state["way"] == "prefill"
        assert server.opened == asked + 2


async def test_a_server_that_is_down_is_asked_until_it_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prober_module, "_FIRST_PAUSE", 0.01)
    upstream = HttpUpstream("main", f"{refused_address()}/v1", "generic")
    prober = Prober(upstream, model="m")
    try:
        prober.start()
        await until(lambda: prober.state["error"] == "upstream_unreachable")
        assert prober.state["class"] == "unknown"
    finally:
        await prober.close()
        await upstream.aclose()


async def test_what_replies_show_is_a_finding_too() -> None:
    """Without any probe: a continuation that began again is remembered as what it is."""
    async with probed("restarts") as (upstream, _, _):
        body = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
        request = ChatRequest("m", body, ())
        with pytest.raises(ContinuationFailed):
            async with upstream.open(request, prefix="The three ducks are there.") as chunks:
                _ = [chunk async for chunk in chunks]
        assert upstream.continuation(request).found == "restarts"
        assert upstream.continuation(request).way == "instruct"
    async with probed("continues") as (upstream, _, _):
        async with upstream.open(request, prefix="The three ducks are there.") as chunks:
            _ = [chunk async for chunk in chunks]
        assert upstream.continuation(request).found == "continues"
        assert upstream.continuation(request).sure
