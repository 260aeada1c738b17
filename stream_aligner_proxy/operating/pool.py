"""Parts that several configurations share: a reload keeps every upstream and aligner whose settings
are the same, with its connections, its health and its loaded model.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Part = TypeVar("_Part")


class _Entry(Generic[_Part]):
    def __init__(self, key: object, part: _Part) -> None:
        self.key = key
        self.part = part
        self.users = 0
        self.starting = asyncio.Lock()
        self.started = False


class Use(Generic[_Part]):
    """One configuration's hold on a part. `release` it, or `drop` it if it was never started."""

    def __init__(self, pool: "Pool[_Part]", entry: _Entry[_Part]) -> None:
        self._pool = pool
        self._entry = entry

    @property
    def part(self) -> _Part:
        return self._entry.part

    async def start(self) -> None:
        """Start the part, if no other has. Raises what that raises; another may then try again."""
        async with self._entry.starting:
            if not self._entry.started:
                await self._pool.start(self._entry.part)
                self._entry.started = True

    async def release(self) -> None:
        """Let it go; closes the part when this was the last hold on it."""
        if self._pool.let_go(self._entry):
            await self._pool.close(self._entry.part)

    def drop(self) -> None:
        """Let go of what this configuration did not start: nothing is open that was not before."""
        self._pool.let_go(self._entry)


class Pool(Generic[_Part]):
    """`start` and `close` are called once for each part, from the event loop. Parts may be taken
    from any thread."""

    def __init__(
        self,
        start: Callable[[_Part], Awaitable[None]],
        close: Callable[[_Part], Awaitable[None]],
    ) -> None:
        self.start = start
        self.close = close
        self._entries: list[_Entry[_Part]] = []
        self._lock = threading.Lock()

    def take(self, key: object, make: Callable[[], _Part]) -> Use[_Part]:
        """The part of that `key` (compared by value), made if there is none. Raises what `make`
        raises."""
        with self._lock:
            for entry in self._entries:
                if entry.key == key:
                    break
            else:
                entry = _Entry(key, make())
                self._entries.append(entry)
            entry.users += 1
            return Use(self, entry)

    def let_go(self, entry: _Entry[_Part]) -> bool:
        """Whether that was the last hold."""
        with self._lock:
            entry.users -= 1
            if entry.users:
                return False
            self._entries.remove(entry)
            return True

    def __len__(self) -> int:
        return len(self._entries)
