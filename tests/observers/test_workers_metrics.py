"""Several processes, one /metrics: whichever worker is asked tells the sum of all."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import multiprocess

from stream_aligner_proxy.demo.script import Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.operating.shared import Shared
from tests.observers.test_metrics import listed, shown, value
from tests.observers.traffic import MODEL, RULES
from tests.servers import serve_in_thread

ROOT = Path(__file__).parents[2]


@dataclass
class Worker:
    """A process with a socket of its own, so that a test knows whom it asks."""

    process: subprocess.Popen[str]
    client: httpx.Client

    def ask(self, question: str = "sum") -> int:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
        return self.client.post("/v1/chat/completions", json=body).status_code

    def metric(self, name: str, **labels: str) -> float:
        return value(self.metrics(), name, **labels)

    def metrics(self) -> str:
        return self.client.get("/metrics").text


@contextmanager
def worker(upstream: str, folder: Path) -> Iterator[Worker]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.observers.worker", str(listener.fileno()), upstream],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=(listener.fileno(),),
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        )
    with process, httpx.Client(base_url=address, timeout=20) as client:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serves\n"
            yield Worker(process, client)
        finally:
            process.kill()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    with ExitStack() as stack:
        upstream = stack.enter_context(serve_in_thread(ScriptedUpstream(Script(RULES))))
        one = stack.enter_context(worker(upstream, tmp_path))
        other = stack.enter_context(worker(upstream, tmp_path))
        yield one, other


REPLIES = "stream_aligner_replies_total"


def test_any_worker_tells_the_sum_and_the_dead_keep_their_counts(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    one, other = workers
    assert [one.ask(), one.ask(), other.ask()] == [200, 200, 200]
    for asked in workers:
        assert asked.metric(REPLIES, outcome="finished") == 3
        assert asked.metric("stream_aligner_corrections_total", route="default") == 3
        assert asked.metric("stream_aligner_first_text_seconds_count") == 3
        assert asked.metric("stream_aligner_workers") == 2
        assert asked.metric("stream_aligner_ready") == 1
        assert asked.metric("stream_aligner_open_replies") == 0
        assert asked.metric("stream_aligner_build_info") == 1
        assert asked.metric("stream_aligner_upstream_up", upstream="main") == 1
    # A process of its own has far less than these two.
    both = one.metric("process_resident_memory_bytes")
    assert both > resident_bytes(one.process.pid) * 1.5
    assert 'pid="' not in one.metrics()

    other.process.kill()
    other.process.wait()
    multiprocess.mark_process_dead(other.process.pid, str(tmp_path))
    assert one.metric(REPLIES, outcome="finished") == 3
    assert one.metric("stream_aligner_workers") == 1
    assert one.metric("process_resident_memory_bytes") < both * 0.75


def test_what_a_dead_worker_had_open_is_gone_with_it(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    one, other = workers
    body = {
        "model": MODEL,
        "stream": True,
        "messages": [{"role": "user", "content": "hold"}],
    }
    with other.client.stream("POST", "/v1/chat/completions", json=body) as response:
        pieces = response.iter_bytes()
        next(pieces)  # it has begun, and is held in the midst
        assert one.metric("stream_aligner_open_streams") == 1
        assert one.metric("stream_aligner_open_branches") == 1
        other.process.kill()
        other.process.wait()
    assert one.metric("stream_aligner_open_streams") == 1  # until it is known to be dead
    multiprocess.mark_process_dead(other.process.pid, str(tmp_path))
    assert one.metric("stream_aligner_open_streams") == 0
    assert one.metric("stream_aligner_open_replies") == 0
    assert one.metric("stream_aligner_started_replies_total") == 1


def test_several_workers_show_the_metrics_that_one_does(workers: tuple[Worker, Worker]) -> None:
    one, _ = workers
    one.ask()
    alone = shown(Shared().metrics.render()[0].decode())
    together = shown(one.metrics())
    for name, (kind, _) in together.items():
        assert alone[name][0] == kind
    # What has no series yet is not there; what has no labels is, from the start.
    missing = {name for name in set(alone) - set(together) if not name.startswith("python_gc_")}
    labelled = {name for name, (_, labels) in listed().items() if labels}
    assert missing <= labelled


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
