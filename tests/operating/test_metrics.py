"""`server.workers`: one /metrics for all of them, while they come and go."""

import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.observers.test_metrics import value
from tests.operating.processes import ask, serving, upstream, write_config

pytestmark = pytest.mark.anyio


async def test_the_metrics_of_all_workers_are_told_by_any_and_outlive_them(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind, workers=2)
        async with serving(config, times=2) as proxy:

            async def told(name: str, **labels: str) -> set[float]:
                """What several connections are told; they meet one worker or another."""
                found = set()
                for _ in range(6):
                    async with httpx.AsyncClient(base_url=proxy.address) as client:
                        text = (await client.get("/metrics")).text
                    found.add(value(text, f"stream_aligner_{name}", **labels))
                return found

            for _ in range(8):
                async with httpx.AsyncClient(base_url=proxy.address) as client:
                    await ask(client)
            assert await told("replies_total", outcome="finished") == {8}
            assert await told("corrections_total", route="default") == {16}
            assert await told("sentence_seconds_count", verdict="replace") == {16}
            assert await told("open_replies") == await told("open_branches") == {0}
            assert (await told("workers"), await told("ready")) == ({2}, {1})

            victim = min(child.pid for child in psutil.Process(proxy.process.pid).children())
            os.kill(victim, signal.SIGKILL)
            await proxy.logged("is started anew")
            await proxy.logged("listening on", times=3)
            assert await told("replies_total", outcome="finished") == {8}
            assert (await told("workers"), await told("open_replies")) == ({2}, {0})
