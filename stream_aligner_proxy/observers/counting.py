"""Counts one reply. Nothing here happens per token: per sentence, branch, review and reply only."""

import time
from collections.abc import Callable
from functools import cached_property

from prometheus_client import Counter, Gauge

from stream_aligner_proxy.core.edits import edit_distance
from stream_aligner_proxy.core.records import Committed, Cost, Finished, Mode, Review, Verdict
from stream_aligner_proxy.core.watching import HeldBy, Opening, Watch
from stream_aligner_proxy.observers.instruments import Instruments

# A longer text takes more than a millisecond, and an observer must not hold a session up.
_MEASURED_CHARS = 500


class Children:
    """The series of replies that are alike, looked up once. All labels are configured words."""

    def __init__(self, instruments: Instruments, mode: str, route: str, aligner: str) -> None:
        self.mode = mode
        self.open = instruments.open_replies.labels(mode)
        self.seconds = instruments.reply_seconds.labels(mode)
        self.judged = instruments.judged.labels(route)
        self.corrections = instruments.corrections.labels(route)
        self._of = instruments
        self._aligner = aligner

    @cached_property
    def open_reviews(self) -> Gauge:
        """Only where there is an aligner at all."""
        self.failed_reviews.inc(0)  # there before the first failure, so that this is an increase
        return self._of.open_reviews.labels(self._aligner)

    @cached_property
    def failed_reviews(self) -> Counter:
        return self._of.failed_reviews.labels(self._aligner)


class Counting(Watch):
    """`known` makes one of our own words of an outcome or a code, which may be an upstream's."""

    __slots__ = (
        "_asked",
        "_children",
        "_clock",
        "_known",
        "_of",
        "_refused",
        "_reviews",
        "_spoke",
        "_streamed",
    )

    def __init__(
        self,
        instruments: Instruments,
        children: Children,
        opening: Opening,
        known: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of = instruments
        self._children = children
        self._known = known
        self._clock = clock
        self._streamed = opening.streamed
        self._asked: dict[int, float] = {}  # when, of branches that have not answered
        self._reviews: set[int] = set()  # without a verdict
        self._spoke = False
        self._refused = False
        children.open.inc()
        if self._streamed:
            instruments.open_streams.inc()

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self._asked[branch] = self._clock()
        self._of.open_branches.inc()

    def branch_answered(self, branch: int, upstream: str) -> None:
        asked = self._asked.pop(branch, None)
        if asked is not None:
            self._of.first_byte.labels(upstream).observe(self._clock() - asked)

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        self._asked.pop(branch, None)
        self._of.open_branches.dec()
        if error is not None:
            self._of.broken_branches.labels(self._known(error)).inc()

    def review_started(self, review: int, asked: Review) -> None:
        self._reviews.add(review)
        self._children.open_reviews.inc()

    def reviewed(
        self, review: int, verdict: Verdict | None, seconds: float, error: str | None = None
    ) -> None:
        self._answered(review)
        if verdict is None:
            self._children.failed_reviews.inc()

    def review_dropped(self, review: int) -> None:
        self._answered(review)

    def _answered(self, review: int) -> None:
        if review in self._reviews:
            self._reviews.remove(review)
            self._children.open_reviews.dec()

    def held(self, seconds: float, by: HeldBy) -> None:
        self._of.stalls.labels(by).inc()
        self._of.stalled_seconds.labels(by).inc(seconds)

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        of = self._of
        of.sentences.labels(unit.outcome).inc()
        match unit.outcome:
            case "keep":
                self._children.judged.inc()
            case "replace":
                self._children.judged.inc()
                self._children.corrections.inc()
                if (share := changed_share(unit)) is not None:
                    of.distance.observe(share)
            case "unreviewed" if self._children.mode != Mode.SHADOW:  # where no text waits for it
                of.unreviewed.inc(len(unit.text))
        if review_seconds is not None:
            of.review_seconds.observe(review_seconds)

    def delivered(self, unit: Committed, seconds: float) -> None:
        self._of.sentence_seconds.labels(unit.outcome).observe(seconds)

    def first_text(self, seconds: float) -> None:
        self._spoke = True
        self._of.first_text.observe(seconds)

    def refused(self) -> None:
        self._refused = True

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        of, children = self._of, self._children
        children.open.dec()
        if self._streamed:
            of.open_streams.dec()
        for review in tuple(self._reviews):
            self._answered(review)
        children.seconds.observe(seconds)
        # What a client brings about must not look like an outage, however often it tries.
        told = "request_rejected" if self._refused else self._known(outcome)
        of.replies.labels(children.mode, told).inc()
        if outcome == "cancelled":
            of.cancellations.labels(
                "after_first_text" if self._spoke else "before_first_text"
            ).inc()
        if finished is not None and finished.usage is not None:
            of.delivered.inc(finished.usage.completion_tokens)
        self._count_cost(cost)

    def _count_cost(self, cost: Cost) -> None:
        of = self._of
        if cost.branches:
            of.branches.labels("first").inc()
        if cost.resumes:
            of.branches.labels("break").inc(cost.resumes)
        if (corrected := cost.branches - 1 - cost.resumes) > 0:
            of.branches.labels("correction").inc(corrected)
        of.discarded.inc(cost.discarded_tokens)
        of.resent.inc(cost.resent_prefix_tokens)
        of.aligner_tokens.labels("prompt").inc(cost.aligner_prompt_tokens)
        of.aligner_tokens.labels("completion").inc(cost.aligner_completion_tokens)
        of.reviews.inc(cost.reviews)
        of.in_vain.inc(cost.reviews_in_vain)
        of.skipped.inc(cost.skipped)
        of.resumes.inc(cost.resumes)
        of.refused.inc(cost.refused_continuations)


def changed_share(unit: Committed) -> float | None:
    """The edit distance over the longer text's length; None for what is too long to measure."""
    old, new = unit.original.strip(), unit.text.strip()
    longest = max(len(old), len(new))
    if not longest or longest > _MEASURED_CHARS:
        return None
    return edit_distance(old, new, longest) / longest
