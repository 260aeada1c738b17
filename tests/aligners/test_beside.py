"""Two aligners over the same sentences: nothing waits for the second one, and the counts add up."""

import asyncio
from collections import Counter

import pytest

from stream_aligner_proxy.aligners.beside import Counted, Shadowed
from stream_aligner_proxy.core.comparing import Comparison, Judged, Pair
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.fakes import FunctionAligner
from tests.waiting import until

pytestmark = pytest.mark.anyio

PAIR = Pair("old", "new")


class Seen:
    """A `ComparisonWatcher`."""

    def __init__(self) -> None:
        self.reviews: list[tuple[str, Judged]] = []
        self.comparisons: list[Comparison] = []
        self.left_out: list[str] = []

    def judged(self, pair: Pair, side: str, review: Judged) -> None:
        assert pair == PAIR
        self.reviews.append((side, review))

    def compared(self, pair: Pair, comparison: Comparison) -> None:
        assert pair == PAIR
        self.comparisons.append(comparison)

    def skipped(self, pair: Pair, reason: str) -> None:
        assert pair == PAIR
        self.left_out.append(reason)


def ask(sentence: str = "One.", **fields) -> Review:
    return Review((Turn("user", "q"),), "", sentence, **fields)


def saying(text: str) -> FunctionAligner:
    return FunctionAligner(lambda review: Verdict(text))


def failing() -> FunctionAligner:
    def judge(review: Review) -> Verdict:
        raise ReviewError("down")

    return FunctionAligner(judge)


def shadowed(current, candidate, seen: Seen, *, share: float = 1.0, most: int = 4) -> Shadowed:
    return Shadowed(current, candidate, PAIR, seen, share=share, most=most)


async def test_the_verdict_is_that_of_the_aligner_at_work() -> None:
    seen, candidate = Seen(), saying("New.")
    both = shadowed(saying("Old."), candidate, seen)
    assert (await both.review(ask())).replacement == "Old."
    await until(lambda: bool(seen.comparisons))
    await both.close()
    assert seen.comparisons[0].agreement == "different_text"
    assert [review.sentence for review in candidate.asked] == ["One."]


async def test_a_candidate_that_hangs_holds_nothing_up_and_the_rest_is_left_out() -> None:
    seen, candidate = Seen(), FunctionAligner(gate=asyncio.Event())
    both = shadowed(FunctionAligner(), candidate, seen, most=2)
    for _ in range(5):
        assert (await both.review(ask())).kept
    await until(lambda: candidate.running == 2)
    assert (seen.comparisons, seen.left_out) == ([], ["busy"] * 3)
    candidate.gate.set()
    await until(lambda: len(seen.comparisons) == 2)
    await both.review(ask())
    await until(lambda: len(seen.comparisons) == 3)
    await both.close()


async def test_closing_ends_what_is_still_reviewed_and_begins_nothing_more() -> None:
    before = asyncio.all_tasks()
    seen, candidate = Seen(), FunctionAligner(gate=asyncio.Event())
    both = shadowed(FunctionAligner(), candidate, seen)
    await both.review(ask())
    await until(lambda: candidate.running == 1)
    await both.close()
    assert asyncio.all_tasks() == before
    assert (candidate.running, candidate.cancelled) == (0, 1)
    await both.review(ask())
    assert asyncio.all_tasks() == before
    assert seen.comparisons == []


async def test_whoever_fails_is_told_apart_and_only_the_current_ones_failure_is_raised() -> None:
    seen = Seen()
    cases = ((saying("x"), failing()), (failing(), saying("x")), (failing(), failing()))
    for number, (current, candidate) in enumerate(cases):
        both = shadowed(current, candidate, seen)
        if number:
            with pytest.raises(ReviewError):
                await both.review(ask())
        else:
            await both.review(ask())
        await until(lambda so_far=number: len(seen.comparisons) == so_far + 1)
        await both.close()
    told = [comparison.agreement for comparison in seen.comparisons]
    assert told == ["candidate_failed", "current_failed", "both_failed"]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ReviewError("down")])
async def test_a_candidate_may_raise_what_it_likes(error: Exception) -> None:
    def judge(review: Review) -> Verdict:
        raise error

    seen = Seen()
    both = shadowed(FunctionAligner(), FunctionAligner(judge), seen)
    assert (await both.review(ask())).kept
    await until(lambda: bool(seen.comparisons))
    await both.close()


async def test_a_review_that_is_withdrawn_is_not_compared() -> None:
    seen, current, candidate = Seen(), FunctionAligner(gate=asyncio.Event()), FunctionAligner()
    for wrapped in (shadowed(current, candidate, seen), Counted(current, PAIR, "current", seen)):
        task = asyncio.create_task(wrapped.review(ask()))
        await until(lambda: current.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wrapped.close()
    assert (seen.reviews, seen.comparisons, seen.left_out) == ([], [], [])


async def test_only_a_share_is_reviewed_twice() -> None:
    seen, none = Seen(), FunctionAligner()
    nobody = shadowed(FunctionAligner(), none, seen, share=0.0)
    some = shadowed(FunctionAligner(), FunctionAligner(), seen, share=0.5)
    for _ in range(200):
        await nobody.review(ask())
        await some.review(ask())
        await until(lambda: not some._running)
    assert none.asked == []
    assert 50 < len(seen.comparisons) < 150
    assert seen.left_out == []


async def test_what_the_candidate_cannot_do_is_left_out() -> None:
    seen, candidate = Seen(), FunctionAligner()
    candidate.scopes = frozenset(("sentence",))
    both = shadowed(FunctionAligner(), candidate, seen)
    await both.review(ask(scope="whole"))
    await both.review(ask(strength=0.9))
    assert seen.left_out == ["unable", "unable"]
    assert candidate.asked == []


async def test_of_a_share_of_conversations_each_review_is_counted_for_who_made_it() -> None:
    seen = Seen()
    current = Counted(saying("x"), PAIR, "current", seen)
    candidate = Counted(failing(), PAIR, "candidate", seen)
    for _ in range(3):
        await current.review(ask())
    with pytest.raises(ReviewError):
        await candidate.review(ask())
    told = Counter((side, review.text, review.changed) for side, review in seen.reviews)
    assert told == {("current", "x", True): 3, ("candidate", None, False): 1}


async def test_closing_it_leaves_the_aligners_to_who_made_them() -> None:
    closed = []

    class Closing(FunctionAligner):
        async def close(self) -> None:
            closed.append(self)

    await shadowed(Closing(), Closing(), Seen()).close()
    await Counted(Closing(), PAIR, "current", Seen()).close()
    assert closed == []
