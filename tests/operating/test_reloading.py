"""A new configuration or checkpoint is taken over while streams are open."""

import asyncio
import signal
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from fastapi import FastAPI

from stream_aligner_proxy.operating.generations import Generations
from stream_aligner_proxy.operating.reloading import Reloader
from stream_aligner_proxy.operating.shared import Shared
from tests.operating.processes import (
    aligned,
    ask,
    open_stream,
    serving,
    text,
    upstream,
    write_config,
)
from tests.waiting import until, until_told

pytestmark = pytest.mark.anyio


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    told: dict[str, Any] = (await client.get("/status")).json()
    return told


async def test_sighup_takes_over_and_open_streams_end_as_they_began(tmp_path: Path) -> None:
    async with upstream() as (scripted, behind):
        config = write_config(tmp_path, behind, replace="good")
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            assert text(await ask(client)) == aligned("good")
            async with open_stream(client) as stream:
                write_config(tmp_path, behind, replace="better", show_upstream=False)
                proxy.tell(signal.SIGHUP)
                await proxy.logged("reloaded the configuration")
                after = await ask(client)
                assert text(after) == aligned("better")
                assert "x-stream-aligner-upstream" not in after.headers
                assert (await status(client))["configuration"]["reloads"] == 1

                async def is_alone() -> bool:  # who has its answer is let go a moment later
                    open_replies: int = (await status(client))["open"]
                    return open_replies == 1

                await until_told(is_alone)
                scripted.release()
                assert await stream.rest() == aligned("good")
            metrics = (await client.get("/metrics")).text
            # One process, one count, whichever configuration wrote the reply.
            assert 'replies_total{mode="stream",outcome="finished"} 3.0' in metrics
            assert 'configuration_reloads_total{outcome="ok"} 1.0' in metrics
            assert metrics.count("# TYPE stream_aligner_upstream_up gauge") == 1


async def test_a_mistake_in_the_new_file_changes_nothing_and_is_told(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind)
        good = config.read_text()
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            config.write_text(good + "\nalignment: {mode: loud}\n")
            proxy.tell(signal.SIGHUP)
            line = await proxy.logged("the configuration stays as it was")
            assert "alignment.mode" in line
            assert text(await ask(client)) == aligned()
            assert "alignment.mode" in (await status(client))["configuration"]["error"]
            assert (
                'configuration_reloads_total{outcome="failed"} 1.0'
                in (await client.get("/metrics")).text
            )
            # What only shows when the aligner is loaded.
            config.write_text(good)
            (tmp_path / "rules.yaml").write_text("- {find: '(', replace: x}\n")
            proxy.tell(signal.SIGHUP)
            await proxy.logged("the configuration stays as it was", times=2)
            assert text(await ask(client)) == aligned()
            # And then it is mended.
            write_config(tmp_path, behind, replace="best")
            proxy.tell(signal.SIGHUP)
            await proxy.logged("reloaded the configuration")
            assert text(await ask(client)) == aligned("best")
            assert (await status(client))["configuration"]["error"] is None


async def test_a_changed_checkpoint_is_noticed_by_itself(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind, watch_seconds=0.05)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            assert text(await ask(client)) == aligned("good")
            new = tmp_path / "new.yaml"
            new.write_text(yaml.safe_dump([{"find": "bad", "replace": "newer"}]))
            new.rename(tmp_path / "rules.yaml")
            await proxy.logged("reloaded the configuration")
            assert text(await ask(client)) == aligned("newer")


async def test_another_checkpoint_is_loaded_once(tmp_path: Path) -> None:
    paths, file = [tmp_path / "a"], tmp_path / "proxy.yaml"
    file.write_text("a")
    made, looks = 0, 0

    def make() -> FastAPI:
        nonlocal made, paths
        made += 1
        paths = [tmp_path / file.read_text()]
        return FastAPI()

    def watched() -> list[Path]:
        nonlocal looks
        looks += 1
        return [file, *paths]

    class Taken:
        async def swap(self, app: FastAPI) -> None:
            return

    reloader = Reloader(make, watched, Shared(), every=0.005)
    task = asyncio.create_task(reloader.run(cast(Generations, Taken())))
    file.write_text("bee")
    await until(lambda: made == 1)
    before = looks
    await until(lambda: looks > before + 6)
    assert made == 1
    task.cancel()
    await asyncio.wait((task,))


async def test_what_takes_a_restart_is_said(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        config = write_config(tmp_path, behind)
        async with serving(config) as proxy, httpx.AsyncClient(base_url=proxy.address) as client:
            write_config(tmp_path, behind, response_store_bytes=1)
            proxy.tell(signal.SIGHUP)
            await proxy.logged("server.response_store_bytes has changed")
            assert text(await ask(client)) == aligned()


async def test_what_changes_while_the_first_models_load_is_noticed(tmp_path: Path) -> None:
    file, swapped = tmp_path / "proxy.yaml", asyncio.Event()
    file.write_text("a: 1")
    reloader = Reloader(FastAPI, lambda: [file], Shared(), every=0.005)
    file.write_text("a: 22")

    class Taken:
        async def swap(self, app: FastAPI) -> None:
            swapped.set()

    task = asyncio.create_task(reloader.run(cast(Generations, Taken())))
    await asyncio.wait_for(swapped.wait(), 5)
    task.cancel()
    await asyncio.wait((task,))
