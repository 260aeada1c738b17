"""Reloading the configuration and the aligners' checkpoints, when told or when they changed.

The new app is made and started beside the old one, so that a mistake in the file, or a checkpoint
that does not load, changes nothing but a log line, a metric and `/status`.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi import FastAPI

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.operating.generations import Generations
from stream_aligner_proxy.operating.shared import Shared

_log = logging.getLogger(__name__)


def fingerprint(paths: Iterable[Path]) -> str:
    """Of files and folders: names, sizes and times of change, links followed. What is missing has
    one too. Weights are not read: there may be gigabytes of them."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            try:
                found = file.stat()
                told = f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
            except OSError:
                told = "missing"
            digest.update(f"{file} {told}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Reloader:
    """`make` builds the app of the configuration as it is now, from any thread, and raises
    `ConfigError`. `watched` are the paths that it is made of, or would have been. `every`: how
    often to look at them, in seconds; 0 for never."""

    def __init__(
        self,
        make: Callable[[], FastAPI],
        watched: Callable[[], Iterable[Path]],
        shared: Shared,
        every: float = 0.0,
    ) -> None:
        self._make = make
        self._watched = watched
        self._shared = shared
        self._every = every
        self._asked = asyncio.Event()
        # Now, not in `run`: what changes while the first models load must not be missed.
        self._known = self._fingerprints()

    def ask(self) -> None:
        """Reload soon; from the event loop."""
        self._asked.set()

    async def run(self, generations: Generations) -> None:
        """Until cancelled."""
        while True:
            await self._wait()
            self._asked.clear()
            before = await self._look()
            done = await self._reload(generations)
            # What has changed while the new one loaded is seen by the next look. A path that came
            # with a configuration that did not load counts as changed: it may be there by now.
            self._known = {
                path: before.get(path, now if done else "")
                for path, now in (await self._look()).items()
            }

    async def _wait(self) -> None:
        """Until told, or until the files have changed and then stayed as they are for a look: a
        checkpoint is copied file by file."""
        before = self._known
        while True:
            try:
                async with asyncio.timeout(self._every or None):
                    await self._asked.wait()
                return
            except TimeoutError:
                now = await self._look()
                if now == before != self._known:
                    return
                before = now

    async def _look(self) -> dict[Path, str]:
        return await asyncio.to_thread(self._fingerprints)

    def _fingerprints(self) -> dict[Path, str]:
        return {path: fingerprint((path,)) for path in self._watched()}

    async def _reload(self, generations: Generations) -> bool:
        """Whether it did."""
        loaded, metrics = self._shared.loaded, self._shared.metrics
        begun = time.monotonic()
        try:
            app = await asyncio.to_thread(self._make)
            await generations.swap(app)
        except ConfigError as error:
            loaded.error = str(error)
            metrics.reloaded(ok=False)
            _log.error("the configuration stays as it was: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a new model does, the old one serves
            loaded.error = f"the new configuration could not be started ({type(error).__name__})"
            metrics.reloaded(ok=False)
            _log.exception("the configuration stays as it was")
        else:
            loaded.at, loaded.error = time.time(), None
            loaded.reloads += 1
            metrics.reloaded(ok=True)
            _log.info("reloaded the configuration in %.1f s", time.monotonic() - begun)
            return True
        return False
