"""One app after another behind one socket: a reload swaps, and what the old one began it ends.

Each app lives in a task of its own: its parts start, it takes requests until the next one has
started, and its parts are let go when its last request has ended.
"""

import asyncio
import logging

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

_log = logging.getLogger(__name__)


class _Generation:
    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.open = 0
        self.retired = asyncio.Event()
        self.idle = asyncio.Event()

    def left(self) -> None:
        self.open -= 1
        self._tell_idle()

    def retire(self) -> None:
        """No more requests are given to it."""
        self.retired.set()
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not self.open and self.retired.is_set():
            self.idle.set()


class Generations:
    """The ASGI app that is served. `first` answers while its models load: that it is not ready."""

    def __init__(self, first: FastAPI) -> None:
        self._newest = _Generation(first)
        self._tasks: asyncio.TaskGroup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._newest
        generation.open += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.left()

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start the first; it lives in `tasks`. Raises what its start-up raises."""
        self._tasks = tasks
        await self._begin(self._newest)

    async def swap(self, app: FastAPI) -> None:
        """Start `app`, then give it all new requests. Raises what its start-up raises; nothing has
        changed then."""
        newer = _Generation(app)
        await self._begin(newer)
        older, self._newest = self._newest, newer
        older.retire()

    def end(self) -> None:
        """The server takes no more requests."""
        self._newest.retire()

    async def _begin(self, generation: _Generation) -> None:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._tasks.create_task(self._live(generation, begun))
        try:
            await begun
        except asyncio.CancelledError:
            task.cancel()
            raise

    @staticmethod
    async def _live(generation: _Generation, begun: "asyncio.Future[None]") -> None:
        try:
            async with generation.app.router.lifespan_context(generation.app):
                begun.set_result(None)
                await generation.retired.wait()
                if generation.open:
                    _log.info("the configuration before still writes %d", generation.open)
                await generation.idle.wait()
        except Exception as error:  # noqa: BLE001 - `begun` has it, or the log
            if not begun.done():
                begun.set_exception(error)
                return
            # Its requests have ended; what failed was letting go of its parts.
            _log.exception("the end of a configuration failed")
