"""Several processes behind one socket: each a whole proxy, started anew when it dies.

They share the listening socket rather than its address: what waits in the queue of a worker that
dies is taken by another, where separate queues would lose it. The supervisor holds no connection
and loads nothing; it passes signals on and looks after the files that metrics are shared in.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence

from prometheus_client import multiprocess

from stream_aligner_proxy.settings import ServerSettings

_log = logging.getLogger(__name__)

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own name for it
_CONFIG_ERROR = 2
_SHORTEST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONG_LIFE = 60.0  # seconds after which a death is no sign of a fault that comes back
_GRACE_SECONDS = 5.0


def supervise(arguments: Sequence[str], listener: socket.socket, server: ServerSettings) -> int:
    """Run `server.workers` of the same command until a signal comes; the exit code: 2 where the
    workers find that the configuration cannot work."""
    with tempfile.TemporaryDirectory(prefix="stream-aligner-metrics-") as folder:
        return asyncio.run(_Supervisor(arguments, listener, server, folder).run())


def end_with_supervisor(tether: int) -> None:
    """In a worker: end as on SIGTERM when the supervisor is gone, killed for instance. `tether` is
    the reading end of a pipe that only it holds open."""

    def wait() -> None:
        os.read(tether, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="tether").start()


class _Supervisor:
    def __init__(
        self, arguments: Sequence[str], listener: socket.socket, server: ServerSettings, folder: str
    ) -> None:
        self._tether, self._line = os.pipe()
        self._command = [
            *(sys.executable, "-m", "stream_aligner_proxy"),
            *(*arguments, "--worker", str(listener.fileno()), str(self._tether)),
        ]
        self._listener = listener
        self._server = server
        self._environment = {**os.environ, METRICS_FOLDER: folder}
        self._folder = folder
        self._stopping = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(ending, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)
        async with asyncio.TaskGroup() as tasks:
            keepers = [
                tasks.create_task(self._keep(number)) for number in range(self._server.workers)
            ]
            tasks.create_task(self._kill_late(keepers))
        os.close(self._line)
        os.close(self._tether)
        return self._code

    async def _keep(self, number: int) -> None:
        """Run one worker after another."""
        pause = _SHORTEST_PAUSE
        late = 0  # the first take connections at once, and say that they load
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(late),
                pass_fds=(self._listener.fileno(), self._tether),
                env=self._environment,
                # Ctrl+C goes to a whole group: the workers hear of it from here.
                start_new_session=True,
            )
            self._processes.add(process)
            if self._stopping.is_set():
                process.terminate()
            code = await process.wait()
            self._processes.discard(process)
            multiprocess.mark_process_dead(process.pid, self._folder)  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            if code == _CONFIG_ERROR:
                self._code = code
                self._stop()
                return
            late = 1
            _log.error("worker %d ended with code %d and is started anew", number, code)
            pause = _SHORTEST_PAUSE if loop.time() - begun > _LONG_LIFE else pause
            await self._rest(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _stop(self) -> None:
        self._tell(signal.SIGTERM)
        self._stopping.set()

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.send_signal(number)

    async def _kill_late(self, keepers: "Sequence[asyncio.Task[None]]") -> None:
        """Who is still there when all have had their time."""
        await self._stopping.wait()
        time = self._server.drain_seconds + self._server.shutdown_seconds + _GRACE_SECONDS
        await asyncio.wait(keepers, timeout=time)
        self._tell(signal.SIGKILL)
