"""How late the event loop is: what a coroutine that is ready has to wait for its turn.

A loop that is late delays every reply at once, and from outside it looks like a slow upstream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_EVERY_SECONDS = 0.25
_LOOKS_PER_REFRESH = 4


class Lag:
    """In seconds: what was seen last, and the most since the start."""

    def __init__(self) -> None:
        self.last = 0.0
        self.worst = 0.0

    @asynccontextmanager
    async def sampled(
        self, told: Callable[[float], None], refresh: Callable[[], None]
    ) -> AsyncIterator[None]:
        """`told` gets each sample; `refresh` is called once a second. Neither may raise."""
        sampler = asyncio.create_task(self._sample(told, refresh), name="event loop lag")
        try:
            yield
        finally:
            sampler.cancel()
            await asyncio.wait((sampler,))

    async def _sample(self, told: Callable[[float], None], refresh: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        looks = 0
        while True:
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            self.last = max(0.0, loop.time() - due)
            self.worst = max(self.worst, self.last)
            told(self.last)
            looks += 1
            if looks % _LOOKS_PER_REFRESH == 0:
                refresh()
