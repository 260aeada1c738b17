"""Shadow mode: deliver the original at once, review beside it, record what would have been.

The same events and actions as the alignment loop, so one session performs both. Nothing waits for
a verdict but the end of the reply, which waits for the reviews still running, so that the record
is whole. An aligner that falls behind never holds the reply up: past the lookahead a sentence is
recorded as unreviewed instead.
"""

from stream_aligner_proxy.core.cutting import splitter_of
from stream_aligner_proxy.core.events import (
    Action,
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Deliver,
    DropReview,
    Event,
    Fail,
    Finish,
    IllegalEvent,
    OpenBranch,
    PartArrived,
    PromptMetered,
    ReviewBroke,
    ReviewDone,
    ReviewProgress,
    StartReview,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Outcome,
    Policy,
    Review,
    Usage,
)
from stream_aligner_proxy.core.sentences import Sentence


class ShadowLoop:
    """The loop of one reply in mode `shadow`. There is one branch, and its text is untouched."""

    def __init__(self, request: ChatRequest, policy: Policy) -> None:
        self._request = request
        self._policy = policy
        self._splitter = splitter_of(policy, "")
        self._delivered: list[str] = []
        self._recorded = ""  # text of the units that were cut off so far
        self._index = 0
        self._next_review = 0
        self._reviews: dict[int, tuple[int, str, int]] = {}  # in flight: index, text and start
        self._end: tuple[str, Usage | None] | None = None
        self._started = self._open = self._done = False
        self._corrections = self._unreviewed = self._skipped = self._recorded_reviews = 0
        self._reviewable = 0  # sentences that were reviewed, or would have been
        self._aligner_prompt = self._aligner_completion = 0

    @property
    def committed(self) -> str:
        return "".join(self._delivered)

    @property
    def done(self) -> bool:
        return self._done

    @property
    def wants_text(self) -> bool:
        return True

    @property
    def cost(self) -> Cost:
        return Cost(
            branches=int(self._started),
            reviews=self._next_review,
            reviews_in_vain=self._next_review - self._recorded_reviews,
            corrections=self._corrections,
            unreviewed=self._unreviewed,
            skipped=self._skipped,
            aligner_prompt_tokens=self._aligner_prompt,
            aligner_completion_tokens=self._aligner_completion,
        )

    def start(self) -> list[Action]:
        if self._started:
            raise IllegalEvent("the loop was started before")
        self._started = self._open = True
        return [OpenBranch(0, "", self._request.max_tokens)]

    def abandon(self) -> list[Action]:
        if self._done:
            return []
        self._done = True
        return [*(DropReview(review) for review in self._reviews), *self._close()]

    def handle(self, event: Event) -> list[Action]:
        if self._done:
            return []
        match event:
            case TextArrived(_, text) if self._open:
                self._delivered.append(text)
                return [Deliver(text=text), *self._review(self._splitter.feed(text))]
            case PartArrived(_, part) if self._open:
                return [*self._review(self._splitter.flush(more=True)), Deliver(part=part)]
            case BranchEnded(_, finish_reason, usage) if self._open:
                self._end = (finish_reason, usage)
                reviews = self._review(self._splitter.flush())
                return [*reviews, *self._close(), *self._finish_if_whole()]
            case BranchBroke(_, error) if self._open:
                return [*self.abandon(), Fail(error)]
            case ReviewDone(review, verdict) if review in self._reviews:
                self._aligner_prompt += verdict.prompt_tokens
                self._aligner_completion += verdict.completion_tokens
                new = None if verdict.replacement is None else verdict.replacement.strip()
                # As in the loop: the same text, whitespace apart, is no change.
                if new is None or new == self._reviews[review][1].strip():
                    actions = self._record(review, "keep", None, end=verdict.end)
                else:
                    self._corrections += 1
                    actions = self._record(review, "replace", new, end=verdict.end)
                return [*actions, *self._finish_if_whole()]
            case ReviewBroke(review, error) if review in self._reviews:
                actions = self._record(review, "unreviewed", None, error=error.message)
                return [*actions, *self._finish_if_whole()]
            case PromptMetered() | TextEnded() | ReviewProgress() | _:
                return []

    def _review(self, sentences: list[Sentence]) -> list[Action]:
        actions: list[Action] = []
        for sentence in sentences:
            core = sentence.text.strip()
            before = self._recorded
            self._recorded += sentence.text
            index = self._index
            self._index += 1
            if not core or (sentence.kind == "code" and not self._policy.review_code):
                actions.append(_unit(index, sentence.text, "passed", start=len(before)))
                continue
            self._reviewable += 1
            most = self._policy.max_reviews
            if most is not None and self._reviewable > most:
                self._skipped += 1
                actions.append(_unit(index, sentence.text, "passed", start=len(before)))
            elif len(self._reviews) >= self._policy.lookahead:
                self._unreviewed += 1
                reason = "skipped: the aligner is behind"
                actions.append(
                    _unit(index, sentence.text, "unreviewed", error=reason, start=len(before))
                )
            else:
                review = self._next_review
                self._next_review += 1
                self._reviews[review] = (index, sentence.text, len(before))
                conversation = self._request.conversation
                request = Review(conversation, before, core, "sentence", self._policy.strength)
                actions.append(StartReview(review, request))
        return actions

    def _record(
        self,
        review: int,
        outcome: Outcome,
        replacement: str | None,
        *,
        end: bool = False,
        error: str | None = None,
    ) -> list[Action]:
        index, text, start = self._reviews.pop(review)
        self._unreviewed += outcome == "unreviewed"
        self._recorded_reviews += outcome != "unreviewed"
        return [
            _unit(
                index, text, outcome, replacement, review=review, end=end, error=error, start=start
            )
        ]

    def _finish_if_whole(self) -> list[Action]:
        if self._end is None or self._reviews:
            return []
        self._done = True
        return [Finish(*self._end, self.cost)]

    def _close(self) -> list[Action]:
        was_open, self._open = self._open, False
        return [CloseBranch(0)] if was_open else []


def _unit(
    index: int,
    original: str,
    outcome: Outcome,
    replacement: str | None = None,
    *,
    review: int | None = None,
    end: bool = False,
    error: str | None = None,
    start: int = 0,
) -> Deliver:
    """The record of a sentence; its text is what would have been delivered in `stream` mode."""
    text = original
    if replacement is not None:
        core = original.strip()
        at = original.index(core)
        text = original[:at] + replacement + original[at + len(core) :] if replacement else ""
    unit = Committed(
        index, original, text, outcome, 0, end=end, review=review, error=error, start=start
    )
    return Deliver(unit=unit)
