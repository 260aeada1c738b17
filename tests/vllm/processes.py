"""Commands as processes of their own, with all that they start in turn."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.vllm.world import BOUND, all_gone, offspring

START = 400.0  # half a minute on two idle cores
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Command:
    """A running `python -m …`; what it says goes to a file."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def answers(self, url: str) -> None:
        """Wait until `url` is a 200."""
        deadline = time.monotonic() + START
        while True:
            try:
                if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"did not start:\n{self.said()[-4000:]}")
            time.sleep(0.2)

    def has_engine(self) -> list[psutil.Process]:
        """Wait for vLLM's engine process; all processes under this one."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and self._process.poll() is None:
            found = offspring(self.pid)
            if any("EngineCore" in " ".join(one.cmdline()) for one in found):
                return found
            time.sleep(0.2)
        raise AssertionError(f"no engine:\n{self.said()[-4000:]}")

    def signalled(self, number: int) -> int:
        """Send a signal and wait for the end; the exit code."""
        self._process.send_signal(number)
        return self._process.wait(BOUND)

    def close(self) -> None:
        left = offspring(self.pid) if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(BOUND)
        finally:
            for one in all_gone(left):
                one.kill()
            self._process.kill()
            self._process.wait()
            self._log.close()


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[Command]:
    """Run a command until the block ends."""
    running = Command(list(arguments), environment)
    try:
        yield running
    finally:
        running.close()
