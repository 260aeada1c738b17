"""How much a process serves, and whether it may be more. `gate` turns away by it.

Counted is what this process serves, over all configurations it has had; the limits are those of the
configuration that a request meets.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = 4096
_MIB = 1024 * 1024
_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """See `ServerSettings`."""

    max_open: int = 2000
    max_held_bytes: int = 512 * _MIB
    shed_above_mib: int | None = None


class Admission:
    """What this process serves now. `draining`: nothing new is taken on. `leaving`: readiness is
    off, so that no more is sent here. `count_shed` is told why something was turned away."""

    def __init__(
        self,
        count_shed: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = 0
        self.idle = asyncio.Event()  # nothing is open
        self.idle.set()
        self.held_bytes = 0
        self.leaving = False
        self.draining = False
        self.count_shed = count_shed
        self._clock = clock
        self._looked = -_LOOK_SECONDS
        self._memory_mib = 0.0

    def enter(self) -> None:
        self.open += 1
        self.idle.clear()

    def leave(self) -> None:
        self.open -= 1
        if not self.open:
            self.idle.set()

    def memory_mib(self) -> float:
        """What the process has resident; 0 where the system does not tell. Asked at most every
        quarter of a second."""
        now = self._clock()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._memory_mib = _resident_mib()
        return self._memory_mib

    def refusal(self, limits: Limits) -> tuple[str, str] | None:
        """Why one more is not taken: a word for the metric, and what the client is told."""
        if self.draining:
            return "draining", "The server is shutting down."
        if self.open >= limits.max_open:
            return "open", "The server writes as many replies as it can."
        if self.held_bytes >= limits.max_held_bytes:
            return "bytes", "The server holds as many requests as it can."
        if limits.shed_above_mib is not None and self.memory_mib() > limits.shed_above_mib:
            return "memory", "The server is short of memory."
        return None


def _resident_mib() -> float:
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES / _MIB
    except (OSError, ValueError, IndexError):
        return 0.0
