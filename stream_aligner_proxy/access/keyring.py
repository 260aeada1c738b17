"""The keys that hold now: those of the configuration and those of a file that may change.

A file that became unreadable or wrong changes nothing: the keys before it stay, and the log, a
metric and `/status` tell.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stream_aligner_proxy.access.keys import Key, Keys
from stream_aligner_proxy.core.errors import ConfigError

_log = logging.getLogger(__name__)


def _fingerprint(path: Path) -> object:
    """What tells one content of the file from another. Kubernetes exchanges a link somewhere above
    the file, so the file that the path leads to is what is looked at."""
    try:
        found = os.stat(path)
        return os.path.realpath(path), found.st_ino, found.st_mtime_ns, found.st_size
    except OSError:
        return None


class Keyring:
    """`read` gives the keys of `file`; raises `ConfigError`, by making one of these too.

    `reloaded` is told whether a changed file was taken over.
    """

    def __init__(
        self,
        inline: Sequence[Key],
        file: Path | None = None,
        read: Callable[[], Sequence[Key]] = tuple,
        *,
        every: float = 5.0,
        reloaded: Callable[[bool], None] = lambda ok: None,
    ) -> None:
        self._inline = tuple(inline)
        self._file = file
        self._read = read
        self._every = every
        self._reloaded = reloaded
        self._seen = None if file is None else _fingerprint(file)
        self.keys = self._all()
        self.error: str | None = None

    def identify(self, shown: str) -> Key:
        """See `Keys`."""
        return self.keys.identify(shown)

    async def watch(self) -> None:
        """Look at the file again and again, until cancelled."""
        if self._file is None:
            return
        while True:
            await asyncio.sleep(self._every)
            await self.look()

    async def look(self) -> None:
        """Read the file if it is another than before."""
        assert self._file is not None
        # Away from the loop: a volume of a network may let one wait.
        now = await asyncio.to_thread(_fingerprint, self._file)
        if now == self._seen:
            return
        self._seen = now
        try:
            self.keys = await asyncio.to_thread(self._all)
        except ConfigError as error:
            self.error = str(error)
            _log.error("the keys stay as they were: %s", error)
            self._reloaded(False)
        else:
            self.error = None
            _log.info("read the keys anew: %d", len(self.keys.all))
            self._reloaded(True)

    def _all(self) -> Keys:
        keys = (*self._inline, *self._read())
        names: dict[bytes, str] = {}
        for key in keys:
            for digest in key.digests:
                if names.setdefault(digest, key.name) != key.name:
                    raise ConfigError(
                        f"access.keys: {key.name} and {names[digest]} have the same hash"
                    )
        return Keys(keys)
