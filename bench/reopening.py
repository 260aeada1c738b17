"""What going on after a rewrite costs over TLS: a new connection, or a new stream of the old.

A branch is left in the middle and the next is opened at once, as after every rewrite. Over HTTP/1.1
the connection is lost with the branch, and the next pays for TCP and TLS; over HTTP/2 it is not. A
relay in between takes half of `rtt_ms` each way; the upstream answers at once. The methods take
turns; times are medians.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme

from bench.report import Row, publish
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream.client import HttpUpstream
from tests.tls import serve_tls

REPLY = "Anna has 3 apples. " * 200
BODY = {"model": "scripted", "messages": [{"role": "user", "content": "How many?"}]}


@asynccontextmanager
async def far_away(port: int, one_way: float) -> AsyncIterator[int]:
    """A relay to `port` that is `one_way` seconds away from it; gives its own port."""
    loop = asyncio.get_running_loop()

    def pass_on(writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            loop.call_later(one_way, pass_on, writer, data)
        loop.call_later(one_way, writer.close)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * one_way)  # TCP's own handshake
        theirs, to_them = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, to_them), pump(theirs, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def reopen(upstream: HttpUpstream) -> float:
    """Seconds from leaving a branch to the first text of the next."""
    request = ChatRequest("scripted", BODY, ())
    async with upstream.open(request) as chunks:
        await anext(aiter(chunks))
    begun = time.perf_counter()
    async with upstream.open(request, prefix="Anna has 3 apples.") as chunks:
        await anext(aiter(chunks))
        return time.perf_counter() - begun


async def measure(rtts: list[float], rounds: int) -> list[Row]:
    rows: list[Row] = []
    app = ScriptedUpstream(Script((Rule(REPLY, pace=0.001),)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with serve_tls(app, trustme.CA(), folder) as base:
            port = int(base.removesuffix("/v1").rpartition(":")[2])
            for rtt in rtts:
                async with far_away(port, rtt / 2000) as relayed:
                    ways = {
                        method: HttpUpstream(
                            "far",
                            f"https://127.0.0.1:{relayed}/v1",
                            "vllm",
                            http2=method == "http/2",
                            ca_file=folder / "ca.pem",
                        )
                        for method in ("http/1.1", "http/2")
                    }
                    taken: dict[str, list[float]] = {method: [] for method in ways}
                    for _ in range(rounds):
                        for method, upstream in ways.items():
                            taken[method].append(await reopen(upstream))
                    for upstream in ways.values():
                        await upstream.aclose()
                slow = statistics.median(taken["http/1.1"])
                for method, seconds in taken.items():
                    median = statistics.median(seconds)
                    rows.append(
                        {
                            "method": method,
                            "rtt_ms": rtt,
                            "n": rounds,
                            "reopened_ms": 1000 * median,
                            "ratio_to_http1": median / slow,
                        }
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rtt", type=float, nargs="+", default=[1, 20, 80], help="milliseconds")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    publish("reopening", asyncio.run(measure(options.rtt, options.rounds)), "bench.reopening")


if __name__ == "__main__":
    main()
