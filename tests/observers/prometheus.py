"""Debian's Prometheus, as a test scrapes with it. Only its programs are used, never its service."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "stream-aligner.json"


def program(name: str) -> str:
    """Its path. Skips the test where there is none, unless PROMETHEUS_REQUIRED is set."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("PROMETHEUS_REQUIRED"):
            pytest.fail(f"there is no {name}, and PROMETHEUS_REQUIRED is set")
        pytest.skip(f"there is no {name} here (Debian's package prometheus)")
    return found


class Prometheus:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def query(self, expression: str) -> list[dict[str, Any]]:
        answer = await self.client.get("/api/v1/query", params={"query": expression})
        told = answer.json()
        assert told["status"] == "success", f"{expression}: {told}"
        result: list[dict[str, Any]] = told["data"]["result"]
        return result

    async def rules(self) -> list[dict[str, Any]]:
        groups = (await self.client.get("/api/v1/rules")).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    async def number(self, expression: str) -> float:
        found = await self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    async def until(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until the expression gives something."""
        async with asyncio.timeout(seconds):
            while not await self.query(expression):  # noqa: ASYNC110 - it has no events
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    """Scrapes the targets (`host:port`) twice a second, and evaluates the rules as often."""
    binary = program("prometheus")
    scraped = {"job_name": "proxy", "static_configs": [{"targets": list(targets)}]}
    config = {
        "global": {
            "scrape_interval": "500ms",
            "scrape_timeout": "500ms",
            "evaluation_interval": "500ms",
        },
        "rule_files": [str(RULES)],
        "scrape_configs": [scraped],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(30):
                while not await _ready(client):
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.1)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False
