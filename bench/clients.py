"""What reading one chunk costs with different HTTP clients: 50 streams of the mock upstream, raw
bytes, nothing parsed. How the upstream client was chosen; see RESULTS.md.

Clients that are not installed are skipped. `raw` is the floor: an asyncio protocol that reads the
socket and takes nothing apart.

    python -m bench.clients [--rounds 3]
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from bench.mock import order
from bench.report import Row, publish
from bench.stack import ROOT, free_port

STREAMS = 50
TOKENS = 400
RATES = (20.0, 180.0)

# Reads one reply to its end: (URL, body) -> None.
Read = Callable[[str, dict[str, Any]], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _httpx(module: str) -> AsyncIterator[Read]:
    httpx = import_module(module)
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:

        async def read(url: str, body: dict[str, Any]) -> None:
            async with client.stream("POST", url, json=body) as answer:
                async for _ in answer.aiter_raw():
                    pass

        yield read


@asynccontextmanager
async def _aiohttp() -> AsyncIterator[Read]:
    aiohttp = import_module("aiohttp")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def read(url: str, body: dict[str, Any]) -> None:
            async with client.post(url, json=body) as answer:
                async for _ in answer.content.iter_any():
                    pass

        yield read


class _Floor(asyncio.Protocol):
    def __init__(self) -> None:
        self.over = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n0\r\n\r\n"):
            self.over.set_result(None)


@asynccontextmanager
async def _raw() -> AsyncIterator[Read]:
    from bench.generator import Job, request_bytes  # noqa: PLC0415

    async def read(url: str, body: dict[str, Any]) -> None:
        port = urlsplit(url).port or 80
        loop = asyncio.get_running_loop()
        transport, floor = await loop.create_connection(_Floor, "127.0.0.1", port)
        question = body["messages"][0]["content"]
        transport.write(request_bytes(Job(port, 0, 0), question))
        await floor.over
        transport.close()

    yield read


CLIENTS: dict[str, Callable[[], Any]] = {
    "raw": _raw,
    "httpx": lambda: _httpx("httpx"),
    "httpx2": lambda: _httpx("httpx2"),
    "aiohttp": _aiohttp,
}


async def spend(client: Callable[[], Any], url: str, rate: float, tokens: int) -> float:
    """CPU-seconds of this process per 1,000 chunks."""

    async def one(number: int, read: Read) -> None:
        await asyncio.sleep(number / STREAMS / rate)
        question = order(tokens, rate, 1)
        await read(url, {"model": "mock", "messages": [{"role": "user", "content": question}]})

    async with client() as read:
        begun = time.process_time()
        await asyncio.gather(*(one(number, read) for number in range(STREAMS)))
        return 1000 * (time.process_time() - begun) / (STREAMS * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    try:
        loops["uvloop"] = import_module("uvloop").new_event_loop
    except ImportError:
        print("uvloop is not installed", file=sys.stderr)
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    mock = subprocess.Popen([sys.executable, "-m", "bench.mock", "--port", str(port)], cwd=ROOT)
    spent: dict[tuple[str, str, float], list[float]] = {}
    if len(cores := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(mock.pid, cores[:1])
        os.sched_setaffinity(0, cores[1:2])
    time.sleep(1)
    try:
        for _ in range(options.rounds):
            for rate in RATES:
                for name, client in CLIENTS.items():
                    for loop, make in loops.items():
                        tokens = int(min(TOKENS, rate * 4))
                        with asyncio.Runner(loop_factory=make) as runner:
                            try:
                                cost = runner.run(spend(client, url, rate, tokens))
                            except ImportError:
                                continue
                        spent.setdefault((name, loop, rate), []).append(cost)
    finally:
        mock.terminate()
        mock.wait()
    rows: list[Row] = [
        {
            "client": name,
            "loop": loop,
            "chunks_per_s": rate * STREAMS,
            "cpu_s_per_1000": statistics.median(costs),
        }
        for (name, loop, rate), costs in spent.items()
    ]
    publish("clients", rows, "bench.clients")


if __name__ == "__main__":
    main()
