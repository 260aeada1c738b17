"""A Redis of the test's own, on a socket in its folder."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = shutil.which("redis-server")


def needs_redis() -> None:
    """Skip without a server; fail where there must be one."""
    if SERVER is None:
        if os.environ.get("REDIS_REQUIRED"):
            pytest.fail("REDIS_REQUIRED is set, but there is no redis-server")
        pytest.skip("no redis-server on this machine")


class RedisServer:
    def __init__(self, folder: Path, password: str = "") -> None:
        self._socket = folder / "redis.sock"
        self._command = [
            *(SERVER or "", "--port", "0", "--unixsocket", str(self._socket)),
            *("--dir", str(folder), "--save", "", "--appendonly", "no"),
            *(("--requirepass", password) if password else ()),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        user = f":{password}@" if password else ""
        self.url = f"unix://{user}{self._socket}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        bound = time.monotonic() + 20
        while not self._socket.exists():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < bound
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._socket.unlink(missing_ok=True)


@contextmanager
def redis_server(folder: Path, password: str = "") -> Iterator[RedisServer]:
    needs_redis()
    server = RedisServer(folder, password)
    server.start()
    try:
        yield server
    finally:
        server.stop()
