"""Aligners that are compared with another: reviewed beside it, or counted while it works.

Both wrap an aligner that somebody else starts and closes, and change nothing of its verdicts.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random

from stream_aligner_proxy.core.comparing import ComparisonWatcher, Pair, Side, compare, judged
from stream_aligner_proxy.core.ports import Aligner, Progress
from stream_aligner_proxy.core.records import Review, Scope, Verdict

_log = logging.getLogger(__name__)
_dice = Random()  # not the shared one, whose numbers may be somebody's experiment

Clock = Callable[[], float]


class _Beside:
    def __init__(self, aligner: Aligner, pair: Pair, watcher: ComparisonWatcher, clock: Clock):
        self._aligner = aligner
        self._pair = pair
        self._watcher = watcher
        self._clock = clock

    @property
    def name(self) -> str:
        return self._aligner.name

    @property
    def scopes(self) -> frozenset[Scope]:
        return self._aligner.scopes

    @property
    def strengths(self) -> tuple[float, float]:
        return self._aligner.strengths

    @property
    def ready(self) -> bool:
        return self._aligner.ready

    async def start(self) -> None:
        """It was started by who made it."""

    def expect(self, review: Review) -> None:
        self._aligner.expect(review)

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """A review that is withdrawn is not told of."""
        begun = self._clock()
        try:
            verdict = await self._aligner.review(review, progress)
        except Exception:
            self._reviewed(review, None, self._clock() - begun)
            raise
        self._reviewed(review, verdict, self._clock() - begun)
        return verdict

    async def close(self) -> None:
        """It is closed by who made it."""

    def _reviewed(self, review: Review, verdict: Verdict | None, seconds: float) -> None:
        raise NotImplementedError


class Counted(_Beside):
    """One of two aligners that share the conversations of a route."""

    def __init__(
        self,
        aligner: Aligner,
        pair: Pair,
        side: Side,
        watcher: ComparisonWatcher,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(aligner, pair, watcher, clock)
        self._side: Side = side

    def _reviewed(self, review: Review, verdict: Verdict | None, seconds: float) -> None:
        self._watcher.judged(self._pair, self._side, judged(review.sentence, verdict, seconds))


class Shadowed(_Beside):
    """The aligner at work, with another in its shadow: when a verdict is there, a `share` of the
    sentences is given to the other too, `most` at once. What comes above that is left out.

    These reviews belong to the wrapper and not to the reply, whose sentence they outlive: nothing
    waits for them, and `close` ends those that are left.
    """

    def __init__(
        self,
        aligner: Aligner,
        candidate: Aligner,
        pair: Pair,
        watcher: ComparisonWatcher,
        *,
        share: float,
        most: int,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(aligner, pair, watcher, clock)
        self._candidate = candidate
        self._share = share
        self._most = most
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _reviewed(self, review: Review, verdict: Verdict | None, seconds: float) -> None:
        if self._closed or _dice.random() >= self._share:
            return
        least, most = self._candidate.strengths
        if review.scope not in self._candidate.scopes or not least <= review.strength <= most:
            self._watcher.skipped(self._pair, "unable")
        elif len(self._running) >= self._most:
            self._watcher.skipped(self._pair, "busy")
        else:
            task = asyncio.create_task(self._compare(review, verdict, seconds))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _compare(self, review: Review, verdict: Verdict | None, seconds: float) -> None:
        theirs: Verdict | None = None
        begun = self._clock()
        try:
            theirs = await self._candidate.review(review)
        except Exception as error:  # noqa: BLE001 - counted as a failure, whatever it was
            _log.debug("aligner %s failed (%s)", self._pair.candidate, type(error).__name__)
        took = self._clock() - begun
        self._watcher.compared(
            self._pair,
            compare(
                judged(review.sentence, verdict, seconds), judged(review.sentence, theirs, took)
            ),
        )
