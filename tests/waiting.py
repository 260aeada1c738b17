"""Waiting for what has no event."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool]) -> None:
    """Poll, with a bound."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (there is nothing to wait for)
            await asyncio.sleep(0.002)
