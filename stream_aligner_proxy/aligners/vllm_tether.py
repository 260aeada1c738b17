"""Ends vLLM's engine process when this process is gone, however it went.

vLLM's engine does not watch its parent: killed outright, the proxy would leave it behind with all
its memory. A shell waits on a pipe that only this process holds open, and kills what it was told
of when the kernel closes it.
"""

import os
import signal
import subprocess
from contextlib import suppress

_WATCH = 'held=; while read -r pid; do held="$held $pid"; done; [ -z "$held" ] || kill -KILL $held'


class Tether:
    """Holds child processes, by their ids, until `release`."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl+C goes to a whole group; this one must outlive it.
            start_new_session=True,
        )

    def hold(self, pid: int) -> None:
        """End this process with ours."""
        if pid in self._held:
            return
        self._held.append(pid)
        assert self._watcher.stdin is not None
        self._watcher.stdin.write(f"{pid}\n")
        self._watcher.stdin.flush()

    def cut(self) -> None:
        """Kill what is held, now."""
        for pid in self._held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def release(self) -> None:
        """Forget what is held: it has ended, and its ids may be used again."""
        self._held.clear()
        # Before its pipe is closed, or it would do its work.
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
