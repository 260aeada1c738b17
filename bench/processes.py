"""Processes of a benchmark: pinned to a core, measured with their children, ended for certain."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import psutil

from bench.stack import ROOT


def unwind_on_sigterm() -> None:
    """Stopped processes would stay for ever: being ended must end what was begun."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Tree:
    """A process and those it started."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._all()]
        return float(sum(spent.user + spent.system for spent in times))

    def rss_mb(self) -> float:
        return float(sum(process.memory_info().rss for process in self._all()) / 1e6)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run in the block, and only there."""
        for process in self._all():
            process.resume()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        for process in self._all():
            process.suspend()

    def end(self) -> None:
        with suppress(psutil.NoSuchProcess):
            processes = self._all()
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # a parent may have ended its children
                    process.resume()
                    process.terminate()
            for process in psutil.wait_procs(processes, timeout=10)[1]:
                process.kill()


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started in the block runs on that core only."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def launch(
    command: Sequence[str], more: Mapping[str, str], log: IO[bytes], core: int | None
) -> "subprocess.Popen[bytes]":
    with pinned(core):
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **more}
        )


class Generator:
    """`bench.generator` in a process of its own."""

    def __init__(self, core: int | None) -> None:
        with pinned(core):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.generator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )

    def run(self, **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        outcome: dict[str, Any] = json.loads(self._process.stdout.readline())
        return outcome

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
