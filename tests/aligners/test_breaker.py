"""An aligner that is down is not waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stream_aligner_proxy.aligners.breaker import AlignerBreaker
from stream_aligner_proxy.core.errors import AlignerUnavailable, ReviewError, Unreviewable
from stream_aligner_proxy.core.health import Health
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.fakes import FunctionAligner
from tests.waiting import until

pytestmark = pytest.mark.anyio

ASKED = Review((Turn("user", "How many?"),), "", "It has 3 apples.")


class Failing(FunctionAligner):
    """Raises `error` while there is one."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(self._judge)
        self.error = error

    def _judge(self, review: Review) -> Verdict:
        if self.error is not None:
            raise self.error
        return Verdict("Well.")


@asynccontextmanager
async def behind(
    aligner: FunctionAligner, pause: float = 1000, *, enforced: bool = True
) -> AsyncIterator[tuple[AlignerBreaker, Health]]:
    health = Health(threshold=3, shortest_pause=pause, longest_pause=2 * pause, enforced=enforced)
    breaker = AlignerBreaker(aligner, health, "main")
    try:
        yield breaker, health
    finally:
        await breaker.close()


async def fail(breaker: AlignerBreaker, times: int, kind: type[Exception] = ReviewError) -> None:
    for _ in range(times):
        with pytest.raises(kind):
            await breaker.review(ASKED)


@pytest.mark.parametrize("error", [ReviewError("timed out"), RuntimeError("oops")])
async def test_after_failures_in_a_row_reviews_fail_at_once(error: Exception) -> None:
    aligner = Failing(error)
    async with behind(aligner) as (breaker, _):
        await fail(breaker, 3, type(error))
        with pytest.raises(AlignerUnavailable) as raised:
            await breaker.review(ASKED)
        assert len(aligner.asked) == 3
        assert (raised.value.status, raised.value.code) == (503, "aligner_unavailable")
        assert 800 <= int(raised.value.headers["retry-after"]) <= 1200
        assert breaker.refusal() is not None
        assert breaker.state == "open"


async def test_what_is_wrong_with_one_text_never_opens_it() -> None:
    aligner = Failing(Unreviewable("the sentence does not fit the aligner's window"))
    async with behind(aligner) as (breaker, health):
        await fail(breaker, 9, Unreviewable)
        assert health.state == "ok"
        assert breaker.refusal() is None


async def test_reviews_that_are_withdrawn_count_neither_way() -> None:
    aligner = Failing(ReviewError("down"))
    async with behind(aligner) as (breaker, health):
        await fail(breaker, 2)
        aligner.gate = asyncio.Event()
        for _ in range(5):
            task = asyncio.create_task(breaker.review(ASKED))
            await until(lambda: aligner.running == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert health.state == "ok"
        aligner.gate = None
        await fail(breaker, 1)
        assert health.state == "open"


async def test_a_trial_of_its_own_finds_out_that_the_aligner_is_back() -> None:
    aligner = Failing(ReviewError("down"))
    async with behind(aligner, pause=0.005) as (breaker, health):
        await fail(breaker, 3)
        await until(lambda: len(aligner.asked) >= 5)  # trials, in vain
        assert health.pause == 0.01
        aligner.error = None
        await until(lambda: health.admits)
        assert breaker.state == "half-open"
        assert (await breaker.review(ASKED)).replacement == "Well."
        assert breaker.state == "ok"
        assert all(review is ASKED or review.sentence != ASKED.sentence for review in aligner.asked)


async def test_while_a_trial_runs_nobody_is_let_through() -> None:
    aligner = Failing(ReviewError("down"))
    async with behind(aligner, pause=0.005) as (breaker, health):
        await fail(breaker, 3)
        aligner.gate, aligner.error = asyncio.Event(), None
        await until(lambda: aligner.running == 1)
        assert breaker.state == "open"
        with pytest.raises(AlignerUnavailable):
            await breaker.review(ASKED)
        aligner.gate.set()
        await until(lambda: health.admits)


async def test_after_a_trial_that_went_well_one_failure_opens_it_again() -> None:
    aligner = Failing(ReviewError("down"))
    async with behind(aligner, pause=0.005) as (breaker, health):
        await fail(breaker, 3)
        aligner.error = None
        await until(lambda: health.admits)
        aligner.error = ReviewError("down")
        await fail(breaker, 1)
        assert health.state == "open"


async def test_closing_ends_the_trials() -> None:
    aligner = Failing(ReviewError("down"))
    before = asyncio.all_tasks()
    async with behind(aligner) as (breaker, _):
        await fail(breaker, 3)
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before


async def test_switched_off_it_asks_whatever_was() -> None:
    aligner = Failing(ReviewError("down"))
    async with behind(aligner, enforced=False) as (breaker, _):
        await fail(breaker, 9)
        assert len(aligner.asked) == 9
        assert breaker.refusal() is None


async def test_an_aligner_that_cannot_review_refuses_before_anything_failed() -> None:
    aligner = FunctionAligner()
    async with behind(aligner) as (breaker, _):
        assert breaker.refusal() is None
        aligner.ready = False
        assert breaker.refusal() is not None


async def test_it_reads_no_hints_while_it_is_open() -> None:
    aligner = Failing(ReviewError("down"))
    hints: list[Review] = []
    aligner.expect = hints.append
    async with behind(aligner) as (breaker, _):
        breaker.expect(ASKED)
        await fail(breaker, 3)
        breaker.expect(ASKED)
    assert hints == [ASKED]
