"""A thousand aligned streams open at once: memory, delay, and nothing lost when the proxy stops.

Each round starts a proxy with the rules aligner on one core; the upstream (`bench.timed`) and the
clients share the other. A tenth of the sentences is corrected, so the upstream is made to continue.

    kb_per_stream   memory of the proxy's process with all streams open, minus that with none, for
                    each of them; the median of the rounds
    p99_added_ms    of each sentence the time from the upstream's writing of its last byte to the
                    client's getting it, 99th percentile; minus the same of streams in mode `off`
                    which run beside the aligned ones
    lost            streams that did not end whole and exact although the proxy got SIGTERM while
                    all were open

    python -m bench.load_operate [--streams 1000] [--rounds 3]
"""

import argparse
import asyncio
import json
import resource
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import cast

import httpx
import psutil
import yaml

from bench.processes import launch, unwind_on_sigterm
from bench.report import publish, table
from bench.stack import free_port
from bench.timed import RIGHT, STAMP, WRONG, expected, order, without_stamps

_BESIDE = 50  # streams in mode `off`
_RATE = 3.0  # tokens a second
_SENTENCES = 8
_RAMP_SECONDS = 6.0
_DRAIN_SECONDS = 2.0
_END = b"\r\n0\r\n\r\n"
_READY_SECONDS = 60.0


@dataclass
class Stream(asyncio.Protocol):
    """One client. `delays`: of each sentence, in seconds."""

    seed: int
    sentences: int
    rate: float
    aligned: bool
    done: "asyncio.Future[None]"
    delays: list[float] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    seen: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        body = {
            "model": "timed",
            "messages": [{"role": "user", "content": order(self.sentences, self.rate, self.seed)}],
            "stream": True,
            "stream_aligner": {"mode": "stream" if self.aligned else "off"},
        }
        content = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        transport.write(head.encode() + content)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns() // 1000
        self.raw += data
        for stamp in STAMP.finditer(self.raw, self.seen):
            self.delays.append((now - int(stamp[1])) / 1e6)
            self.seen = stamp.end()
        if self.raw.endswith(_END):
            self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()

    def _over(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self.transport.close()

    @property
    def writing(self) -> bool:
        return bool(self.raw) and not self.done.done()

    def fault(self) -> str:
        """What is wrong with it; empty where it is whole and exact."""
        head, _, rest = bytes(self.raw).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return f"not answered: {bytes(self.raw[:300])!r}"
        if not rest.endswith(_END):
            return "cut off"
        body = b"".join(part for part in rest.split(b"\r\n")[1::2])
        frames = [event[6:] for event in body.split(b"\n\n") if event.startswith(b"data: {")]
        text, finish = "", None
        for frame in map(json.loads, frames):
            if "error" in frame:
                return f"error: {frame['error']}"
            for choice in frame["choices"]:
                text += choice["delta"].get("content") or ""
                finish = finish or choice["finish_reason"]
        if not body.endswith(b"data: [DONE]\n\n") or finish != "stop":
            return "no end"
        wanted = expected(self.sentences, self.seed, aligned=self.aligned)
        return "" if without_stamps(text).rstrip() == wanted.rstrip() else f"other text: {text!r}"


@dataclass
class Round:
    """`whole`: all streams were open when memory was read."""

    whole: bool
    kb_per_stream: float
    aligned: list[float]
    off: list[float]
    faults: list[str]


class Proxy:
    def __init__(self, folder: Path, upstream: int) -> None:
        (folder / "rules.yaml").write_text(
            yaml.safe_dump([{"find": rf"\b{WRONG}\b", "replace": RIGHT}])
        )
        one = {"name": "timed", "base_url": f"http://127.0.0.1:{upstream}/v1", "dialect": "vllm"}
        self.port = free_port()
        config = {
            "upstreams": [{**one, "probe": False}],
            "aligner": {"backend": "rules", "path": "rules.yaml"},
            "server": {
                "page": False,
                "port": self.port,
                "log_level": "error",
                "drain_seconds": _DRAIN_SECONDS,
                "shutdown_seconds": 120,
                "max_open": 4000,
            },
        }
        file = folder / "proxy.yaml"
        file.write_text(yaml.safe_dump(config))
        self._log = (folder / "proxy.log").open("w+b")
        command = [sys.executable, "-m", "stream_aligner_proxy", "serve", "--config", str(file)]
        self.process = launch(command, {}, self._log, 0)
        self._seen = psutil.Process(self.process.pid)

    def rss_kb(self) -> float:
        return float(self._seen.memory_info().rss / 1024)

    async def ready(self, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(_READY_SECONDS):
            while True:
                try:
                    if (await client.get("/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


async def _open(port: int, count: int, *, aligned: bool, over: float) -> list[Stream]:
    """Begin so many streams, spread over some seconds."""
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    for number in range(count):
        stream = Stream(number, _SENTENCES, _RATE, aligned, loop.create_future())
        streams.append(stream)
        await loop.create_connection(lambda one=stream: one, "127.0.0.1", port)
        await asyncio.sleep(over / count)
    return streams


async def _round(folder: Path, upstream: int, count: int) -> Round:
    proxy = Proxy(folder, upstream)
    loop = asyncio.get_running_loop()
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{proxy.port}", trust_env=False, timeout=30
        ) as client:
            await proxy.ready(client)
            for seed in range(20):  # what is made once is made now
                stream = Stream(seed, 4, 1000.0, seed % 2 == 0, loop.create_future())
                await loop.create_connection(lambda one=stream: one, "127.0.0.1", proxy.port)
                await stream.done
            empty = proxy.rss_kb()
            aligned, off = await asyncio.gather(
                _open(proxy.port, count, aligned=True, over=_RAMP_SECONDS),
                _open(proxy.port, _BESIDE, aligned=False, over=_RAMP_SECONDS),
            )
            await asyncio.sleep(4)
            full = statistics.median([await _after(0.3, proxy) for _ in range(5)])
            whole = all(stream.writing for stream in (*aligned, *off))
            faults = await _stop(proxy, client)
            await asyncio.gather(*(stream.done for stream in (*aligned, *off)))
            code = await asyncio.to_thread(proxy.process.wait, 60)
            if code:
                faults.append(f"the proxy ended with code {code}")
    finally:
        proxy.end()
    streams = [*aligned, *off]
    faults += [fault for stream in streams if (fault := stream.fault())]
    return Round(
        whole,
        (full - empty) / len(streams),
        [delay for stream in aligned for delay in stream.delays],
        [delay for stream in off for delay in stream.delays],
        faults,
    )


async def _after(seconds: float, proxy: Proxy) -> float:
    await asyncio.sleep(seconds)
    return proxy.rss_kb()


async def _stop(proxy: Proxy, client: httpx.AsyncClient) -> list[str]:
    """SIGTERM, and what the order of things is then."""
    proxy.process.send_signal(signal.SIGTERM)
    body = {"model": "timed", "messages": [{"role": "user", "content": order(1, 1000, 1)}]}
    wrong = []
    told = time.monotonic()
    while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    late = time.monotonic() - told
    taken = (await client.post("/v1/chat/completions", json=body)).status_code
    if late < _DRAIN_SECONDS / 2 and taken != 200:
        wrong.append(f"a request while readiness was off for the first time got {taken}")
    await asyncio.sleep(_DRAIN_SECONDS + 0.5)
    refused = await client.post("/v1/chat/completions", json=body)
    if refused.status_code != 503:
        wrong.append(f"a request that came too late got {refused.status_code}")
    return wrong


def _p99_ms(delays: list[float]) -> float:
    return 1000 * statistics.quantiles(delays, n=100)[98]


async def measure(count: int, rounds: int) -> list[Round]:
    port = free_port()
    done: list[Round] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "upstream.log").open("w+b") as log:
            command = [sys.executable, "-m", "bench.timed", "--port", str(port)]
            upstream = launch(command, {}, log, 1)
            try:
                for _ in range(2 * rounds):
                    if sum(one.whole for one in done) == rounds:
                        break
                    one = await _round(folder, port, count)
                    done.append(one)
                    if not one.whole:  # on a machine that was busy; what was lost counts
                        print("some streams ended too early; once more:", file=sys.stderr)
                    print(
                        f"{one.kb_per_stream:.1f} KB a stream; p50 and p99 of delays, aligned "
                        f"{1000 * statistics.median(one.aligned):.1f} {_p99_ms(one.aligned):.1f}, "
                        f"off {1000 * statistics.median(one.off):.1f} {_p99_ms(one.off):.1f} ms; "
                        f"{len(one.faults)} faults",
                        file=sys.stderr,
                    )
                    for fault in one.faults[:5]:
                        print(f"  {fault[:300]}", file=sys.stderr)
            finally:
                upstream.kill()
                upstream.wait()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unwind_on_sigterm()
    # Two sockets a stream; children inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=import_module("uvloop").new_event_loop) as runner:
        rounds = runner.run(measure(options.streams, options.rounds))
    measured = [one for one in rounds if one.whole]
    if not measured:
        sys.exit("the machine is too busy: in no round were all streams open at once")
    added = [_p99_ms(one.aligned) - _p99_ms(one.off) for one in measured]
    row = {
        "open_streams": options.streams,
        "kb_per_stream": round(statistics.median(one.kb_per_stream for one in measured), 1),
        "p99_added_ms": round(statistics.median(added), 1),
        "lost": sum(len(one.faults) for one in rounds),
    }
    if options.streams == 1000:
        publish("load_operate", [row], "bench.load_operate")
    else:
        print(table([row]))
    if row["lost"]:
        sys.exit("failed")


if __name__ == "__main__":
    main()
