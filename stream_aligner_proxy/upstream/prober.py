"""Probing in the background: at start-up, and again when an upstream did not do as it was thought.

Nothing waits for it. What cannot be asked is asked again later, ever less often.
"""

import asyncio
import time
from collections.abc import Mapping

from stream_aligner_proxy.core.errors import UpstreamError
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.probing import reason

_LIMIT_SECONDS = 15.0
_FIRST_PAUSE = 30.0
_LONGEST_PAUSE = 900.0


class Prober:
    """Keeps what is known of one upstream's continuations. `model`: which to ask, None for the
    first that it lists. It asks only where the way is left open and partial messages are one."""

    def __init__(self, upstream: HttpUpstream, *, enabled: bool = True, model: str | None = None):
        self._upstream = upstream
        self.enabled = enabled and upstream.ways.open_to_probing
        self._model = model
        self.tried = asyncio.Event()  # the first answer is there, or there was none in time
        if not self.enabled:
            self.tried.set()
        self._task: asyncio.Task[None] | None = None
        self._probed_at: float | None = None
        self._error: str | None = None

    @property
    def state(self) -> Mapping[str, object]:
        """For the status page: dialect, way, class, sure, probed_at (Unix seconds), error."""
        ways, model = self._upstream.ways, self._model or ""
        way = ways.plain(model)
        return {
            "dialect": self._upstream.dialect.name,
            "way": way.way,
            "class": ways.class_of(model),
            "sure": way.sure,
            "probed_at": self._probed_at,
            "error": self._error,
        }

    def start(self) -> None:
        """Begin; needs a running event loop."""
        if self.enabled and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])  # unlike awaiting it, this can be cancelled itself

    async def probe(self) -> None:
        """Ask once; what was found is in `state`, an error too."""
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                if self._model is None:
                    self._model = await self._first_listed()
                if self._model is not None:
                    await self._upstream.probe(self._model)
        except UpstreamError as error:
            self._error = reason(error)
        except TimeoutError:
            self._error = "upstream_timeout"
        else:
            self._error = None if self._model is not None else "no_model_listed"
            self._probed_at = time.time()

    async def _first_listed(self) -> str | None:
        models = await self._upstream.models()
        return next((str(model["id"]) for model in models if model.get("id")), None)

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            self._upstream.ways.doubted.clear()
            await self.probe()
            self.tried.set()
            if self._error is None:
                pause = _FIRST_PAUSE
                await self._upstream.ways.doubted.wait()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
