"""Two real proxies that share one Redis: what both let in together is the limit."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.access.redis_server import redis_server
from tests.operating.processes import Serving, ask, body, serving, upstream, write_config

pytestmark = pytest.mark.anyio

KEY = new_key()
BEARER = {"authorization": f"Bearer {KEY}"}


@asynccontextmanager
async def pair(
    folder: Path, redis: str, **limits: int
) -> AsyncIterator[tuple[ScriptedUpstream, list[Serving], list[httpx.AsyncClient]]]:
    """Two proxies, and a client of each."""
    async with upstream() as (scripted, address):
        config = write_config(folder, address)
        data = yaml.safe_load(config.read_text())
        data["access"] = {
            "keys": [{"name": "team", "hash": hash_of(KEY), **limits}],
            "redis": {"url": redis, "lease_seconds": 1.5, "timeout": 5.0},
        }
        config.write_text(yaml.safe_dump(data))
        async with (
            serving(config) as one,
            serving(config) as two,
            httpx.AsyncClient(base_url=one.address, headers=BEARER, timeout=30) as first,
            httpx.AsyncClient(base_url=two.address, headers=BEARER, timeout=30) as second,
        ):
            yield scripted, [one, two], [first, second]


async def statuses(clients: list[httpx.AsyncClient], times: int) -> list[int]:
    answers = await asyncio.gather(*(ask(client) for client in clients for _ in range(times)))
    return [answer.status_code for answer in answers]


async def test_both_together_let_in_as_many_requests_as_the_limit(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        # One more comes back every 15 seconds.
        async with pair(tmp_path, redis.url, requests_per_minute=4) as (_, _, clients):
            told = await statuses(clients, 6)
    assert set(told) == {200, 429}
    assert 4 <= told.count(200) <= 5


async def test_tokens_that_one_has_spent_are_gone_for_the_other(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with pair(tmp_path, redis.url, tokens_per_minute=5) as (_, _, (first, second)):
            assert (await ask(first)).status_code == 200
            async with asyncio.timeout(20):  # told a moment after the reply
                await until_told(second, 429)


async def test_the_places_of_a_proxy_that_was_killed_come_back(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with pair(tmp_path, redis.url, max_open=2) as (scripted, servers, clients):
            held = [asyncio.create_task(hold(client)) for client in clients]
            await scripted.until(lambda upstream: upstream.opened == 2, 20)
            for client in clients:
                assert (await ask(client)).status_code == 429
            servers[0].tell(signal.SIGKILL)
            async with asyncio.timeout(20):
                await until_told(clients[1], 200)
            # The other one still holds its place, which it renews, so there is just one.
            assert not held[1].done()
            told = await statuses(clients[1:], 1)
            assert told == [200]
            scripted.release()
            assert await held[1] == 200
            await asyncio.gather(*held, return_exceptions=True)


async def until_told(client: httpx.AsyncClient, status: int) -> None:
    for _ in range(1000):
        if (await ask(client)).status_code == status:
            return
        await asyncio.sleep(0.02)


async def hold(client: httpx.AsyncClient) -> int:
    """A stream that the upstream holds in its middle."""
    answer: Any = await client.post("/v1/chat/completions", json=body("hold"))
    return int(answer.status_code)
