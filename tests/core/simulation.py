"""A scheduler for the loop without I/O: it performs actions and picks what happens next.

Everything the outside world could do in any order is a choice of the caller: which running thing
moves, what the upstream writes, how the aligner judges, and late events of things already closed.
The checks that must hold after every single step are in here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from stream_aligner_proxy.core.events import (
    Action,
    BranchEnded,
    CloseBranch,
    Deliver,
    DropReview,
    Event,
    Expect,
    Fail,
    Finish,
    OpenBranch,
    PauseBranch,
    ResumeBranch,
    ReviewDone,
    ReviewProgress,
    StartReview,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.loop import AlignmentLoop
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Review, Turn, Verdict

REQUEST = ChatRequest("m", {}, (Turn("user", "q"),))


def outcome_text(review: Review, verdict: Verdict) -> str:
    """What a verdict makes of a sentence, as the loop sees it."""
    return review.sentence if verdict.replacement is None else verdict.replacement.strip()


@dataclass
class Simulation:
    """`judge` is the aligner; `write` gives a branch's chunks for a prefix."""

    policy: Policy
    write: Callable[[str], list[str]]
    judge: Callable[[Review], Verdict]
    can_continue: bool = True
    sure: bool = True
    request: ChatRequest = REQUEST
    tell_more: Callable[[int], int] | None = None  # how far verdicts are told before their end
    delivered: str = ""
    deliveries: list[Deliver] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    paused: set[int] = field(default_factory=set)
    running: dict[int, list[str]] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)  # branches whose text has ended
    reviews: dict[int, Review] = field(default_factory=dict)
    asked: dict[int, Review] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    expected: list[Review] = field(default_factory=list)
    told_of: dict[int, str] = field(default_factory=dict)  # reviews whose beginning was told
    partial: str = ""  # delivered of a sentence before its verdict
    outcome: Finish | Fail | None = None

    def __post_init__(self) -> None:
        self.loop = AlignmentLoop(
            self.request, self.policy, can_continue=self.can_continue, sure=self.sure
        )
        self.perform(self.loop.start())

    def send(self, event: Event) -> None:
        self.perform(self.loop.handle(event))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.outcome is None, "an action after the end"
            match action:
                case OpenBranch(branch, prefix):
                    assert not set(self.running) - self.paused, "two branches at once"
                    assert prefix == self.delivered.rstrip()
                    self.prefixes.append(prefix)
                    self.running[branch] = self.write(prefix)
                case PauseBranch(branch):
                    assert branch in self.running
                    assert not self.paused
                    self.paused.add(branch)
                case ResumeBranch(branch):
                    self.paused.remove(branch)
                case CloseBranch(branch):
                    self.paused.discard(branch)
                    del self.running[branch]
                    self.closed.append(branch)
                case Expect(request):
                    assert request.sentence == request.sentence.strip()
                    self.expected.append(request)
                case StartReview(review, request):
                    assert request.sentence == request.sentence.strip() != ""
                    self.reviews[review] = self.asked[review] = request
                case DropReview(review):
                    self.reviews.pop(review, None)
                case Deliver():
                    self.check_delivery(action)
                    self.delivered += action.text
                    self.deliveries.append(action)
                case Finish() | Fail():
                    self.outcome = action
        assert self.loop.committed == self.delivered

    def check_delivery(self, action: Deliver) -> None:
        """Nothing unreviewed is delivered, and each verdict was given for exactly this place."""
        unit = action.unit
        if unit is None and action.part is None:
            self.check_beginning(action.text)
            return
        if unit is None:
            assert not self.partial, "a part inside a sentence"
            return
        before = self.delivered[: len(self.delivered) - len(self.partial)]
        assert unit.text == self.partial + action.text
        assert not self.partial or unit.outcome in ("keep", "replace")
        self.partial = ""
        assert unit.index == sum(d.unit is not None for d in self.deliveries)
        if unit.outcome == "passed":
            if self.request.max_tokens is None:
                assert unit.text in (unit.original, unit.original.lstrip())
        elif unit.outcome == "unreviewed":
            assert self.policy.fail_open
        else:
            assert unit.review is not None
            asked, verdict = self.asked[unit.review], self.verdicts[unit.review]
            assert asked.sentence == unit.original.strip()
            assert asked.committed == before
            assert (unit.outcome == "keep") == (outcome_text(asked, verdict) == asked.sentence)
            if verdict.kept and self.request.max_tokens is None:
                assert unit.text in (unit.original, unit.original.lstrip())
            if self.policy.max_reviews is not None and self.policy.mode is not Mode.WHOLE:
                judged = [d.unit for d in self.deliveries if d.unit and d.unit.review is not None]
                assert len(judged) < self.policy.max_reviews

    def check_beginning(self, text: str) -> None:
        """What comes before a verdict was told of the sentence that stands exactly here."""
        before = self.delivered[: len(self.delivered) - len(self.partial)]
        self.partial += text
        assert text
        assert not self.request.stop
        assert any(
            self.asked[review].committed == before and told.startswith(self.partial.lstrip())
            for review, told in self.told_of.items()
            if review in self.reviews
        )

    # --- moves -----------------------------------------------------------------------------

    def feed(self) -> None:
        """The running branch writes its next chunk, or ends."""
        branch = self.moving
        chunks = self.running[branch]
        if chunks:
            self.send(TextArrived(branch, chunks.pop(0)))
        elif branch not in self.told:
            self.told.add(branch)
            self.send(TextEnded(branch, "stop"))
        else:
            self.send(BranchEnded(branch, "stop"))

    @property
    def moving(self) -> int | None:
        """The branch that writes, beside one that may be paused."""
        [branch] = set(self.running) - self.paused or [None]
        return branch

    def verdict_of(self, review: int) -> Verdict:
        if review not in self.verdicts:
            self.verdicts[review] = self.judge(self.asked[review])
        return self.verdicts[review]

    def tell(self, review: int) -> None:
        """The aligner tells some more of what the sentence becomes."""
        told = self.told_of.get(review, "")
        text = outcome_text(self.asked[review], self.verdict_of(review))
        end = len(told) + 1
        while end < len(text) and text[end - 1].isspace():
            end += 1
        end += self.tell_more(len(text) - end)
        self.told_of[review] = text[:end].strip()
        self.send(ReviewProgress(review, self.told_of[review]))

    def answer(self, review: int) -> None:
        verdict = self.verdict_of(review)
        del self.reviews[review]
        self.send(ReviewDone(review, verdict))

    def moves(self) -> list[Callable[[], None]]:
        moves: list[Callable[[], None]] = []
        if self.moving is not None and self.loop.wants_text:
            moves.append(self.feed)
        for review in sorted(self.reviews):
            moves.append(lambda review=review: self.answer(review))
            if self.tell_more is not None:
                text = outcome_text(self.asked[review], self.verdict_of(review))
                if len(self.told_of.get(review, "")) < len(text):
                    moves.append(lambda review=review: self.tell(review))
        return moves

    def run(self, choose: Callable[[int], int] = lambda count: 0) -> "Simulation":
        for _ in range(10_000):
            if self.outcome is not None:
                return self
            moves = self.moves()
            assert moves, "nothing can happen, and the reply is not finished"
            moves[choose(len(moves))]()
        raise AssertionError("the reply does not end")
