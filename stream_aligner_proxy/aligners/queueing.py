"""The line before an aligner: how many reviews are let in, how many wait, and for how long."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Place:
    """One review's. `taken_up` may be set by another thread."""

    __slots__ = ("since", "taken_up")

    def __init__(self, since: float) -> None:
        self.since = since
        self.taken_up: float | None = None


class Queue:
    """Implements `core.ports.ReviewQueue`. `places` reviews are let in, the others wait outside.

    `at_once`: whoever has a place is taken up. Otherwise the review itself notes when it is.
    `free`: places that nobody has.
    """

    def __init__(
        self, places: int, *, at_once: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.free = places
        self._places = asyncio.Semaphore(places)
        self._at_once = at_once
        self._clock = clock
        self._waiting: set[Place] = set()
        self.waited: Callable[[float], None] = lambda seconds: None

    @property
    def waiting(self) -> int:
        """Reviews that are not taken up yet."""
        return sum(place.taken_up is None for place in tuple(self._waiting))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Wait for a place."""
        place = Place(self._clock())
        self._waiting.add(place)
        try:
            async with self._places:
                self.free -= 1
                try:
                    if self._at_once:
                        self._waiting.discard(place)
                        place.taken_up = self._clock()
                    yield place
                finally:
                    self.free += 1
        finally:
            self._waiting.discard(place)
            # Who was withdrawn before has not waited in vain for the aligner's sake.
            if place.taken_up is not None:
                self.waited(place.taken_up - place.since)
