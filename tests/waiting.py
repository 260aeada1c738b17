"""Waiting for what has no event."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], bool]) -> None:
    """Poll, with a bound."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (there is nothing to wait for)
            await asyncio.sleep(0.002)


async def until_told(holds: Callable[[], Awaitable[bool]]) -> None:
    """The same for what has to be asked for."""
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
