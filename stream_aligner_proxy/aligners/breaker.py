"""An aligner behind a circuit breaker: while it is down, nobody waits for it.

Failures and timeouts in a row open it. Reviews then fail at once, until a trial has gone well: a
small review of the breaker's own, in a task that lives until `close`. So no client's sentence has
to find out. Reviews that were withdrawn, and errors about one text, say nothing.
"""

import asyncio
import logging
import math
from random import Random

from stream_aligner_proxy.core.errors import AlignerUnavailable, ReviewError
from stream_aligner_proxy.core.health import Health, Pass, State
from stream_aligner_proxy.core.ports import Aligner, Progress
from stream_aligner_proxy.core.records import Review, Scope, Turn, Verdict

_log = logging.getLogger(__name__)
_dice = Random()

TRIAL_SECONDS = 30.0


class AlignerBreaker:
    """Implements `core.ports.Aligner`, and owns the aligner it asks. Used from one event loop."""

    def __init__(self, aligner: Aligner, health: Health, label: str) -> None:
        self._aligner = aligner
        self._health = health
        self._label = label  # the configured name
        self._recovery: asyncio.Task[None] | None = None
        self._next_trial = 0.0  # loop time

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

    @property
    def state(self) -> State:
        """`open` also while a trial runs."""
        return self._health.state if self._health.admits else "open"

    def refusal(self) -> AlignerUnavailable | None:
        """Why a reply that cannot do without reviews should not begin now; None where it may."""
        if not self._health.enforced or (self._health.admits and self.ready):
            return None
        self._health.reject()
        return self._unavailable()

    async def start(self) -> None:
        await self._aligner.start()

    def expect(self, review: Review) -> None:
        if self._health.admits:
            self._aligner.expect(review)

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """Raises `AlignerUnavailable` at once while it is open."""
        if (tried := self._health.enter()) is None:
            raise self._unavailable()
        try:
            verdict = await self._aligner.review(review, progress)
        except ReviewError as error:
            if error.illness:
                self._failed(tried)
            raise
        except Exception:
            self._failed(tried)
            raise
        else:
            tried.succeeded()
            return verdict
        finally:
            tried.leave()

    async def close(self) -> None:
        recovery, self._recovery = self._recovery, None
        if recovery is not None:
            recovery.cancel()
            await asyncio.gather(recovery, return_exceptions=True)
        self._health.close()
        await self._aligner.close()

    def _unavailable(self) -> AlignerUnavailable:
        return AlignerUnavailable(
            "the aligner failed several times and is not asked before it has recovered",
            headers={"retry-after": str(max(1, math.ceil(self._retry_after)))},
        )

    @property
    def _retry_after(self) -> float:
        return max(0.0, self._next_trial - asyncio.get_running_loop().time())

    def _failed(self, tried: Pass) -> None:
        tried.failed()
        health = self._health
        if not health.shut:
            return
        if self._recovery is None or self._recovery.done():
            _log.warning("aligner %s: failed several times; it is not asked now", self._label)
            self._try_later()
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Try it until it answers; what is asked then decides."""
        health = self._health
        while not health.usable:
            await asyncio.sleep(self._retry_after)
            health.answered()
            if (tried := health.enter()) is None:
                continue
            try:
                if await self._answers():
                    tried.begun()
                    _log.info("aligner %s: answers again", self._label)
                else:
                    tried.failed()
                    self._try_later()
            finally:
                tried.leave()

    def _try_later(self) -> None:
        pause = self._health.pause * _dice.uniform(0.8, 1.2)
        self._next_trial = asyncio.get_running_loop().time() + pause

    async def _answers(self) -> bool:
        trial = Review((Turn("user", "Hello."),), "", "Hello there.", next(iter(self.scopes)))
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                await self._aligner.review(trial)
        except ReviewError as error:
            return not error.illness
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is not well
            _log.warning("aligner %s: a trial raised %s", self._label, type(error).__name__)
            return False
        return True
