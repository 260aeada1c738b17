"""SIGTERM: readiness first, what is open ends whole, what is new is told to come again."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import httpx
import pytest

from stream_aligner_proxy.demo.script import Chunking, Rule, Script
from tests.api.proxy import error_of
from tests.operating.processes import (
    BOUND,
    aligned,
    ask,
    body,
    open_stream,
    serving,
    text,
    upstream,
    write_config,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def readiness(client: httpx.AsyncClient, status: int) -> httpx.Response:
    async with asyncio.timeout(BOUND):
        while (answer := await client.get("/readyz")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return answer


async def test_on_sigterm_open_streams_end_whole_and_new_requests_come_again(
    tmp_path: Path,
) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            async with open_stream(client) as stream:
                proxy.tell(signal.SIGTERM)
                unready = await readiness(client, 503)
                assert unready.json()["status"] == "draining"
                await proxy.logged("draining: 1 requests are open")
                refused = await ask(client)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["connection"] == "close"
                assert error_of(refused)["code"] == "overloaded"
                assert (await client.get("/healthz")).status_code == 200
                told = (await client.get("/metrics")).text
                assert 'stream_aligner_shed_requests_total{reason="draining"} 1.0' in told
                assert scripted.running == 1
                scripted.release()
                assert await stream.rest() == aligned()
            assert await proxy.ended() == 0


async def test_while_readiness_is_off_for_a_while_requests_are_still_taken(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind, drain_seconds=3600)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            proxy.tell(signal.SIGTERM)
            await readiness(client, 503)
            await proxy.logged("taking requests for 3600 s yet")
            assert text(await ask(client)) == aligned()
            # Told twice it does not wait.
            proxy.tell(signal.SIGTERM)
            assert await proxy.ended() == 0


async def test_what_does_not_end_in_time_ends_with_an_error(tmp_path: Path) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind, shutdown_seconds=0)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            async with open_stream(client) as stream:
                proxy.tell(signal.SIGTERM)
                with pytest.raises(AssertionError, match="shutting down"):
                    await stream.rest()
            assert await proxy.ended() == 0
        await until(lambda: scripted.running == 0)


@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_a_client_that_takes_nothing_does_not_hold_up_the_end(
    tmp_path: Path, mode: str
) -> None:
    """`client_seconds` would be two minutes."""
    sentence = "word " * 400 + "end. "
    long = Script((Rule(sentence * 8_000),), chunk=Chunking(size=401))  # 16 MB
    async with upstream(long) as (scripted, behind):
        config = write_config(tmp_path, behind, shutdown_seconds=0)
        config.write_text(config.read_text() + f"alignment: {{mode: '{mode}'}}\n")
        async with serving(config) as proxy:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                host, _, port = proxy.address.removeprefix("http://").rpartition(":")
                client.connect((host, int(port)))
                sent = json.dumps(body()).encode()
                head = f"content-type: application/json\r\ncontent-length: {len(sent)}"
                request = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n"
                client.sendall(request.encode() + sent)
                await scripted.until(lambda s: s.opened == 1, seconds=BOUND)
                before = -1
                while before != (before := len(scripted.requests[0].sent)) or not before:  # noqa: ASYNC110
                    await asyncio.sleep(0.3)  # all buffers on the way are full
                assert scripted.running == 1
                proxy.tell(signal.SIGTERM)
                assert await proxy.ended() == 0
        await until(lambda: scripted.running == 0)


async def test_an_interrupt_drains_too_and_says_so_in_the_exit_code(tmp_path: Path) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind, drain_seconds=3600)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            async with open_stream(client) as stream:
                proxy.tell(signal.SIGINT)
                await readiness(client, 503)
                scripted.release()
                assert await stream.rest() == aligned()
            assert await proxy.ended() == 130
