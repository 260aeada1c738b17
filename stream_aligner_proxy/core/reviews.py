"""The reviews of one reply: which may run now, and what the aligner says in them.

Rule: a review is made for one place. It assumes the committed text before its sentence, those that
wait before it kept; whoever commits something else there drops it.
"""

from collections.abc import Mapping

from stream_aligner_proxy.core.branch import Branch
from stream_aligner_proxy.core.commits import Commits
from stream_aligner_proxy.core.errors import ProxyError, ReviewError
from stream_aligner_proxy.core.events import Action, DropReview, Expect, StartReview
from stream_aligner_proxy.core.line import Line, Unit, unit_of
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Review, Scope, Verdict
from stream_aligner_proxy.core.sentences import Sentence
from stream_aligner_proxy.core.window import Window


class Reviews:
    """Reviews in flight, and the counts of all."""

    def __init__(
        self,
        request: ChatRequest,
        policy: Policy,
        *,
        line: Line,
        commits: Commits,
        window: Window,
        actions: list[Action],
    ) -> None:
        self._conversation = request.conversation
        self._strength = policy.strength
        self._early_review = policy.early_review
        whole = policy.mode is Mode.WHOLE
        self._scope: Scope = "whole" if whole else "sentence"
        # A whole answer is one review: a number of sentences says nothing about it.
        self._most = None if whole else policy.max_reviews
        self._line = line
        self._commits = commits
        self._window = window
        self._actions = actions
        self._in_flight: dict[int, Unit] = {}
        self.early: Unit | None = None  # reviewed, but not known to be a whole sentence
        self.started = 0
        self.used = 0  # their verdict was committed
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def left(self) -> bool:
        """Whether the sentence that comes next is one of the first `max_reviews`."""
        if self._most is None:
            return True
        return self._commits.judged + self._line.reviewable < self._most

    # --- what may run ----------------------------------------------------------------------

    def start_waiting(self) -> None:
        """Start the reviews of what stands in line, as far ahead as the window lets them."""
        kept: list[Unit] = []
        for unit in self._line.units():
            if len(self._in_flight) >= self._window.reviews:
                return
            if not (unit.passed or unit.review is not None):
                self._start(unit, self._committed_with(kept))
            if not unit.may_be_kept:
                return  # what follows it will be dropped or reviewed again
            kept.append(unit)

    def look_at(self, branch: Branch) -> None:
        """Ask about the sentence being written if it seems complete, else hint at its review."""
        if not branch.open or self.early is not None:
            return
        asks = (
            self._early_review
            and branch.splitter.seems_over
            and len(self._in_flight) < self._window.reviews
        )
        if not (asks or branch.worth_a_hint) or branch.rest_passes or not self.left:
            return
        waiting = list(self._line.units())
        if not all(unit.may_be_kept for unit in waiting):
            return
        before = self._committed_with(waiting)
        rest = branch.splitter.rest
        if asks:
            self.early = unit_of(Sentence(rest), branch.number, 0, passed=False)
            self._start(self.early, before)
        else:
            self._expect(before, rest.strip())

    def expect_first(self) -> None:
        """Hint at the review of what a branch will write first."""
        if self.left:
            self._expect(self._commits.settled, "")

    def _committed_with(self, kept: list[Unit]) -> str:
        """The committed text once these, the first in line, are kept."""
        settled = self._commits.settled
        ahead = "".join(unit.text for unit in kept)
        return settled + self._commits.after(ahead, empty=not settled)

    def _of(self, committed: str, sentence: str) -> Review:
        return Review(self._conversation, committed, sentence, self._scope, self._strength)

    def _expect(self, committed: str, sentence: str) -> None:
        self._actions.append(Expect(self._of(committed, sentence)))

    def _start(self, unit: Unit, committed: str) -> None:
        unit.review = self.started
        self.started += 1
        self._in_flight[unit.review] = unit
        self._actions.append(StartReview(unit.review, self._of(committed, unit.core)))

    # --- what the aligner says -------------------------------------------------------------

    def done(self, review: int, verdict: Verdict) -> None:
        self.prompt_tokens += verdict.prompt_tokens
        self.completion_tokens += verdict.completion_tokens
        if unit := self._in_flight.pop(review, None):
            unit.verdict = verdict

    def broke(self, review: int, error: ProxyError) -> None:
        if unit := self._in_flight.pop(review, None):
            unit.error = error

    def progressed(self, review: int, text: str) -> None:
        if (unit := self._in_flight.get(review)) is None:
            return
        text = text.strip()
        if text.startswith(unit.told):
            unit.told = text
        else:
            self.broke(review, took_back())
            self._actions.append(DropReview(review))

    # --- early reviews ---------------------------------------------------------------------

    def adopt_early(self, unit: Unit) -> None:
        """The early review becomes the unit's own if it is what was asked about, else it goes."""
        early = self.early
        if early is None:
            return
        if unit.passed or unit.core != early.core:
            self.drop_early()
            return
        self.early = None
        unit.review, unit.verdict, unit.error = early.review, early.verdict, early.error
        unit.told = early.told
        if early.review in self._in_flight:
            self._in_flight[early.review] = unit

    def drop_early(self) -> None:
        """It was not the end of a sentence, or its place is not what it was."""
        early, self.early = self.early, None
        if early is not None and early.review is not None:
            self._in_flight.pop(early.review, None)
            self._actions.append(DropReview(early.review))

    # --- dropping --------------------------------------------------------------------------

    def drop_all(self) -> None:
        self._drop({})

    def drop_those_gone(self) -> None:
        """Drop the reviews of what no longer stands in line."""
        self._drop({unit.review: unit for unit in self._line.units()})

    def _drop(self, stay: Mapping[int | None, Unit]) -> None:
        self.drop_early()
        for review in [review for review in self._in_flight if review not in stay]:
            del self._in_flight[review]
            self._actions.append(DropReview(review))


def took_back() -> ReviewError:
    return ReviewError("the aligner took back what it had told of its revision")
