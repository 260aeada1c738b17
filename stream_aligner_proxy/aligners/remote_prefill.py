"""Reading ahead at a server: a one-token request puts a coming review's prefix into its cache.

The first review of a talk gains by it; for later ones the reviews before them have filled most of
the cache already (`bench.remote_prefill`). So a prefix is sent only when much of it is new.
Rule: it never stands in the way of a review: one at a time for
a talk, none at a busy server, no second try.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from stream_aligner_proxy.aligners.remote_pool import key_of
from stream_aligner_proxy.core.records import Review

log = logging.getLogger(__name__)

NEW_CHARS = 1000  # of conversation and committed text that no request has held yet
_TALKS = 1024  # remembered at most

Send = Callable[[Review], Coroutine[Any, Any, None]]


class Prefiller:
    """Decides what is worth reading ahead; `send` does it, and may fail."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[None]] = {}

    def seen(self, key: bytes, review: Review) -> None:
        """Note that a request with this review's prefix is under way."""
        self._known[key] = _chars(review)
        self._known.move_to_end(key)
        if len(self._known) > _TALKS:
            self._known.popitem(last=False)

    def offer(self, review: Review) -> None:
        """Read ahead if it pays. Returns at once, never raises."""
        key = key_of(review)
        if key in self._running or _chars(review) - self._known.get(key, 0) < NEW_CHARS:
            return
        self.seen(key, review)
        task = asyncio.create_task(self._run(review))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def close(self) -> None:
        """Cancel what runs."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, review: Review) -> None:
        try:
            await self._send(review)
        except Exception as error:  # noqa: BLE001  (a hint: the review itself will say what is wrong)
            log.debug("reading ahead failed: %s", error)


def _chars(review: Review) -> int:
    return len(review.committed) + sum(len(turn.text) for turn in review.conversation)
