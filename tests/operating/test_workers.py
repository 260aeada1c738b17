"""Several processes behind one socket."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from tests.operating.certificates import TLS, renew, shown, trusting
from tests.operating.processes import (
    aligned,
    ask,
    open_stream,
    serving,
    text,
    upstream,
    write_config,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


def workers_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind, workers=2)
        async with serving(config, times=2) as proxy:
            before = workers_of(proxy.process.pid)
            assert len(before) == 2
            async with (
                httpx.AsyncClient(base_url=proxy.address) as client,
                open_stream(client) as stream,
            ):
                scripted.release()
                assert await stream.rest() == aligned()
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            await proxy.logged("is started anew")
            listening = asyncio.create_task(proxy.logged("listening on", times=3))
            asked = 0
            # The one that comes takes no connection before it can answer.
            while not listening.done() or asked < 6:
                async with httpx.AsyncClient(base_url=proxy.address) as client:
                    assert text(await ask(client)) == aligned()
                asked += 1
            await listening
            after = workers_of(proxy.process.pid)
            assert len(after) == 2
            assert after & before == before - {victim}
            proxy.tell(signal.SIGTERM)
            assert await proxy.ended() == 0
            assert not any(psutil.pid_exists(pid) for pid in after)


async def test_on_sigterm_the_streams_of_all_workers_end_whole(tmp_path: Path) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind, workers=2)
        async with serving(config, times=2) as proxy:
            async with (
                httpx.AsyncClient(base_url=proxy.address) as client,
                open_stream(client) as one,
                open_stream(client) as two,
                open_stream(client) as three,
            ):
                proxy.tell(signal.SIGTERM)
                await proxy.logged("draining", times=2)
                await until(lambda: scripted.running == 3)
                scripted.release()
                for stream in (one, two, three):
                    assert await stream.rest() == aligned()
            assert await proxy.ended() == 0


async def test_a_reload_reaches_every_worker(tmp_path: Path) -> None:
    renew(tmp_path)
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind, workers=2, tls=TLS)
        async with serving(config, times=2) as proxy:
            write_config(tmp_path, behind, replace="new", workers=2, tls=TLS)
            certificate = renew(tmp_path)
            proxy.tell(signal.SIGHUP)
            await proxy.logged("reloaded the configuration", times=2)
            await proxy.logged("read the certificate", times=2)
            for _ in range(6):
                assert await shown(proxy) == certificate
                async with httpx.AsyncClient(base_url=proxy.address, verify=trusting()) as client:
                    assert text(await ask(client)) == aligned("new")


async def test_a_configuration_that_cannot_work_ends_them_all(tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", workers=2)
    (tmp_path / "rules.yaml").write_text("- {find: '(', replace: x}\n")
    async with serving(config, ready="stream-aligner: ") as proxy:
        assert await proxy.ended() == 2


async def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind, workers=2)
        async with serving(config, times=2) as proxy:
            workers = workers_of(proxy.process.pid)
            assert len(workers) == 2
            proxy.tell(signal.SIGKILL)
            await until(lambda: not any(psutil.pid_exists(pid) for pid in workers))
