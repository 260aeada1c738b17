"""The proxy as its own process, seen from outside: connections, memory, metrics, and tasks by
`/debug`. And the aligner's server beside it, which is killed and started again."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.stack import MODELS, ROOT, free_port

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "training_config.json",
)
_READY_SECONDS = 90.0
TIMEOUTS = {"connect": 2, "first_byte": 1.0, "between_chunks": 0.8, "total": 20}
REVIEW_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """`tasks` is None where the proxy does not tell."""

    tasks: int | None
    sockets: int
    rss_mb: float


@dataclass(slots=True)
class Proxy:
    process: asyncio.subprocess.Process
    address: str
    client: httpx.AsyncClient
    workers: int

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def processes(self) -> list[psutil.Process]:
        """Those that serve."""
        root = psutil.Process(self.process.pid)
        return root.children() if self.workers > 1 else [root]

    async def reading(self) -> Reading:
        """What the proxy holds now, over all of its workers."""
        sockets, rss = 0, 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                sockets += len(process.net_connections("tcp"))
                rss += process.memory_info().rss
        # One worker answers, and nobody knows which.
        tasks = await self._tasks() if self.workers == 1 else None
        return Reading(tasks, sockets, rss / 1e6)

    async def _tasks(self) -> int | None:
        answer = await self.client.get("/debug")
        return int(answer.json()["tasks"]) if answer.status_code == 200 else None

    async def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Values by name and values of the labels."""
        text = (await self.client.get("/metrics")).text
        return {
            (sample.name.removeprefix("stream_aligner_"), tuple(sample.labels.values())): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


class AlignerServer:
    """`bench.faulty.aligner` in a process. `outages`: when it was down, as (from, to) in the loop's
    time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.outages: list[tuple[float, float]] = []
        self.down_since: float | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        command = (sys.executable, "-m", "bench.faulty.aligner", "--port", str(self._port))
        self._process = await asyncio.create_subprocess_exec(
            *command, "--path", str(self._folder), cwd=ROOT
        )
        async with asyncio.timeout(_READY_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def restart(self, pause: float) -> None:
        """Kill it, and start it anew after so many seconds."""
        loop = asyncio.get_running_loop()
        begun = self.down_since = loop.time()
        await self.stop()
        await asyncio.sleep(pause)
        await self.start()
        self.down_since = None
        self.outages.append((begun, loop.time()))

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()


def write_config(folder: Path, upstream: str, aligner: str, workers: int, *, debug: bool) -> Path:
    server: dict[str, object] = {"page": False, "port": 0, "workers": workers, "log_level": "error"}
    if debug:
        server["debug"] = True
    # Breakers would turn most streams away before anything can go wrong with them.
    off = {"breaker": {"enabled": False}}
    common = {"base_url": upstream, "probe": False, "timeouts": TIMEOUTS, **off}
    config = {
        "upstreams": [
            {"name": "sure", "dialect": "vllm", "models": ["common", "sure-*"], **common},
            {"name": "unsure", "dialect": "generic", "models": ["unsure-*"], **common},
        ],
        "aligner": {
            "backend": "remote",
            "path": str(folder),
            "urls": [aligner],
            "timeout": REVIEW_SECONDS,
            "queue": 1024,
            **off,
        },
        "server": {**server, "max_open": 4000},
    }
    file = folder / "proxy.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def copy_tokenizer(folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        shutil.copy(MODELS / "aligner" / name, folder / name)


@asynccontextmanager
async def serving(config: Path, workers: int = 1) -> AsyncIterator[Proxy]:
    """A real `stream-aligner serve`; ended with all its workers."""
    log = config.with_suffix(".log").open("w+")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_aligner_proxy", "serve", "--config", str(config)),
        *("--port", str(port)),
        stderr=log,
        cwd=ROOT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=10) as client:
            await _ready(client, process, config, workers)
            yield Proxy(process, address, client, workers)
    finally:
        await _end(process)
        log.close()


async def _ready(
    client: httpx.AsyncClient, process: asyncio.subprocess.Process, config: Path, workers: int
) -> None:
    """One of several workers answers, any of them: so all must be ready for long enough."""
    wanted, ready = 1 if workers == 1 else 40, 0
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(httpx.HTTPError):
                    answer = await client.get("/readyz", headers={"connection": "close"})
                    ready = ready + 1 if answer.status_code == 200 else 0
                    if ready == wanted:
                        return
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    raise RuntimeError(f"the proxy did not start:\n{config.with_suffix('.log').read_text()}")


async def _end(process: asyncio.subprocess.Process) -> None:
    workers = []
    with contextlib.suppress(psutil.Error):
        workers = psutil.Process(process.pid).children()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            worker.kill()
