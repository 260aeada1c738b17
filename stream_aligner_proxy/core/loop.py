"""The alignment loop as a state machine: events in, actions out; no I/O, no clock, no tasks.

    start() ─► RUNNING ──(every event)──► RUNNING ──► DONE   by Finish, Fail or abandon()

One branch runs at a time. Its text is cut into sentences, which wait in order until the head of
the line has a verdict. While they wait the branch keeps writing (optimistic continuation) and
later sentences are reviewed ahead, each as if those before it were kept. The last one may be asked
about before it is sure to be a whole one (`early_review`); its verdict counts if it was.

    keep                     deliver; nothing restarts
    replace, can continue    deliver the new text, drop all that waits, close, open from it
    replace, cannot          deliver the new text, keep the branch, review what waits again
    replace with ""          like "cannot": the same prefix would only bring the same sentence back
    end                      deliver, then finish: the upstream is not asked for more

The end of a branch, and its failure, stand in line behind its text, so what came before is
delivered first, and a correction made in time makes them void. The invariants the tests pin:
committed text only grows and equals what was delivered; verdicts commit in order; events of
closed branches and dropped reviews change nothing; as many branches are closed as opened.
"""

from collections import deque
from typing import Literal

from stream_aligner_proxy.core.errors import ProxyError, ReviewError
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
from stream_aligner_proxy.core.line import Broken, End, Part, Splitter, Unit, WholeAnswer, unit_of
from stream_aligner_proxy.core.meter import Meter
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Mode,
    Outcome,
    Policy,
    Review,
    Usage,
)
from stream_aligner_proxy.core.sentences import Sentence, SentenceSplitter
from stream_aligner_proxy.core.stops import until_stop

# Parts (tool-call pieces, reasoning) waiting behind a sentence before reading pauses.
_MAX_WAITING = 64


class AlignmentLoop:
    """The loop of one reply in mode `stream` or `whole`.

    `can_continue` is whether the upstream can continue a given prefix for this request; without
    it the loop is rewrite-only. Whole answers are never continued: their branch has ended.
    """

    def __init__(self, request: ChatRequest, policy: Policy, *, can_continue: bool) -> None:
        whole = policy.mode is Mode.WHOLE
        self._conversation = request.conversation
        self._stops = request.stop
        self._policy = policy
        self._whole = whole
        self._continuations_left = policy.max_continuations if can_continue and not whole else 0
        self._meter = Meter(request.max_tokens)
        self._committed = ""
        self._index = 0
        self._branch = -1
        self._branch_open = False
        self._splitter: Splitter = self._new_splitter()
        self._owed = ""  # committed trailing whitespace that was not sent with the prefix
        self._rewritten = False  # text of the running branch was changed
        self._ended: str | None = None  # why the running branch ended, once it has
        self._told = False  # the running branch told its end itself
        self._aligners_fence = False  # the code block being written was opened by a rewrite
        self._waiting: deque[Unit | Part | End | Broken] = deque()
        self._units = 0  # of these, sentences
        self._behind: list[Part] = []  # parts behind the beginning of a whole answer
        self._reviews: dict[int, Unit] = {}  # in flight
        self._next_review = 0
        self._early: Unit | None = None  # reviewed, but not known to be a whole sentence
        self._done = False
        self._corrections = self._unreviewed = self._discarded = 0
        self._aligner_prompt = self._aligner_completion = 0
        self._actions: list[Action] = []

    # --- what the session asks -------------------------------------------------------------

    @property
    def committed(self) -> str:
        """Everything committed so far: exactly what was delivered as text."""
        return self._committed

    @property
    def done(self) -> bool:
        return self._done

    @property
    def wants_text(self) -> bool:
        """Whether the running branch should be read on; False is back-pressure (rule 6)."""
        return self._units < self._policy.lookahead and len(self._waiting) < _MAX_WAITING

    @property
    def cost(self) -> Cost:
        return Cost(
            branches=self._branch + 1,
            reviews=self._next_review,
            corrections=self._corrections,
            unreviewed=self._unreviewed,
            resent_prefix_tokens=self._meter.resent,
            discarded_tokens=self._discarded,
            aligner_prompt_tokens=self._aligner_prompt,
            aligner_completion_tokens=self._aligner_completion,
        )

    def start(self) -> list[Action]:
        """Open the first branch."""
        if self._branch >= 0 or self._done:
            raise IllegalEvent("the loop was started before")
        self._open_branch()
        return self._take_actions()

    def abandon(self) -> list[Action]:
        """The client left, or the session failed: close what is open and say nothing more."""
        if not self._done:
            self._stop()
        return self._take_actions()

    def handle(self, event: Event) -> list[Action]:
        """The actions that follow from an event, in the order they are to be performed."""
        if not self._concerns(event):
            return []
        match event:
            case TextArrived(_, text, tokens):
                self._text(text, tokens)
            case PartArrived(_, part, tokens):
                self._line_up(self._splitter.flush(more=True))
                self._part(Part(part, tokens))
            case PromptMetered(_, tokens):
                self._meter.prompt(tokens)
            case TextEnded(_, finish_reason):
                self._end_text(finish_reason)
            case BranchEnded(_, finish_reason, usage):
                self._told = True
                self._end(finish_reason, usage)
            case BranchBroke(_, error):
                self._close_branch()
                self._waiting.append(Broken(error))
            case ReviewDone(review, verdict):
                self._aligner_prompt += verdict.prompt_tokens
                self._aligner_completion += verdict.completion_tokens
                if unit := self._reviews.pop(review, None):
                    unit.verdict = verdict
            case ReviewProgress():
                pass
            case ReviewBroke(review, error):
                if unit := self._reviews.pop(review, None):
                    unit.error = error
        self._advance()
        return self._take_actions()

    # --- events ----------------------------------------------------------------------------

    def _concerns(self, event: Event) -> bool:
        """Whether the event can still change anything. Raises `IllegalEvent` for a bug."""
        match event:
            case ReviewDone(review) | ReviewProgress(review) | ReviewBroke(review):
                if not 0 <= review < self._next_review:
                    raise IllegalEvent(f"review {review} was never started")
                return not self._done
            case _:
                if not 0 <= event.branch <= self._branch:
                    raise IllegalEvent(f"branch {event.branch} was never opened")
                return self._branch_open and event.branch == self._branch

    def _text(self, text: str, tokens: int) -> None:
        if self._owed:
            # The prefix was sent without its trailing whitespace; the upstream writes it again.
            same = 0
            while same < min(len(self._owed), len(text)) and text[same] == self._owed[same]:
                same += 1
            self._owed = self._owed[same:] if same == len(text) else ""
            text = text[same:]
        self._meter.arrived(len(text), tokens)
        if self._meter.overrun:
            self._end("length", None)
            return
        self._line_up(self._splitter.feed(text))
        if self._early and self._splitter.rest.strip() != self._early.core:
            self._drop_early()
        if self._whole and self._splitter.pending > self._policy.max_whole_chars:
            self._too_long()

    def _part(self, part: Part) -> None:
        if not self._splitter.pending:
            self._waiting.append(part)
            return
        # A whole answer that has begun comes first, and it is whole only at its end.
        self._behind.append(part)
        if len(self._behind) > self._policy.max_whole_chars:
            self._too_long()

    def _too_long(self) -> None:
        self._close_branch()
        self._waiting.append(Broken(ReviewError("the reply is too long to review as a whole")))

    def _end_text(self, finish_reason: str) -> None:
        self._ended = finish_reason
        self._line_up(self._splitter.flush())
        self._waiting.extend(self._behind)
        self._behind.clear()

    def _end(self, finish_reason: str, usage: Usage | None) -> None:
        self._end_text(finish_reason)
        self._waiting.append(End(finish_reason, usage))
        self._close_branch()

    def _line_up(self, sentences: list[Sentence]) -> None:
        for sentence in sentences:
            tokens = self._meter.take(len(sentence.text))
            code = sentence.kind == "code"
            # A fence that the aligner put in must not let what follows it pass (rule 3).
            self._aligners_fence = self._aligners_fence and code
            passed = code and not (self._policy.review_code or self._aligners_fence)
            unit = unit_of(sentence, self._branch, tokens, passed=passed)
            if self._early and unit.core == self._early.core and not unit.passed:
                self._adopt_early(unit)
            elif self._early:
                self._drop_early()
            self._waiting.append(unit)
            self._units += 1

    # --- the line --------------------------------------------------------------------------

    def _advance(self) -> None:
        """Commit all that can be committed, then start the reviews that may run."""
        while self._waiting and not self._done:
            match self._waiting[0]:
                case Unit() as unit:
                    if not self._settle(unit):
                        break
                case Part(part, tokens):
                    self._waiting.popleft()
                    self._meter.aside += tokens
                    self._actions.append(Deliver(part=part))
                case End(finish_reason, usage):
                    self._waiting.popleft()
                    self._finish(finish_reason, usage)
                case Broken(error):
                    self._waiting.popleft()
                    self._fail(error)
        if not self._done:
            self._start_reviews()

    def _settle(self, unit: Unit) -> bool:
        """Commit the head of the line if it can be; False where its verdict is awaited."""
        if unit.passed:
            self._leave(unit, "passed")
        elif unit.error is not None:
            if not self._policy.fail_open:
                self._fail(unit.error)
                return True
            self._unreviewed += 1
            self._leave(unit, "unreviewed")
        elif unit.verdict is None:
            return False
        else:
            replacement, end = unit.verdict.replacement, unit.verdict.end
            # The same text, whitespace apart, is no change, whatever the aligner calls it.
            if replacement is None or (new := replacement.strip()) == unit.core:
                self._leave(unit, "keep", end)
            else:
                self._replace(unit, new, end)
        return True

    def _leave(self, unit: Unit, outcome: Outcome, end: bool = False) -> None:
        """Commit a unit as it is."""
        # A running branch knows nothing of longer text put in before: only then is its own text
        # measured against the client's limit.
        fitting = self._meter.cut(unit.text) if self._rewritten else unit.text
        text, stopped = until_stop(self._stops, self._committed, fitting)
        self._commit(unit, text, outcome)
        if stopped:
            self._finish("stop", None)
        elif fitting != unit.text:
            self._finish("length", None)
        elif end:
            self._finish("stop", None)

    def _replace(self, unit: Unit, replacement: str, end: bool) -> None:
        self._corrections += 1
        self._rewritten = True
        # Measured with the white space before it, which may be lines of it.
        fitting = self._meter.cut(unit.lead + replacement)[len(unit.lead) :]
        text = unit.lead + fitting + unit.tail if fitting else ""
        text, stopped = until_stop(self._stops, self._committed, text)
        self._commit(unit, text, "replace")
        if end or stopped:
            self._finish("stop", None)
        elif fitting != replacement or (self._meter.remaining == 0 and not self._whole):
            self._finish("length", None)
        elif replacement and self._continuations_left > 0 and not self._ended_for_good():
            self._continuations_left -= 1
            self._drop_line()
            self._close_branch()
            self._open_branch()
            # What was rewritten was no code that passes, so an open block is not the upstream's.
            self._aligners_fence = self._splitter.in_code
        else:
            # The branch stays; what was reviewed ahead had assumed the sentence was kept.
            self._drop_reviews(keep_units=True)

    def _ended_for_good(self) -> bool:
        """Whether the branch ended for a reason that a continuation must not get around: one such
        as `content_filter`, or perhaps one of the client's stop strings."""
        if self._ended == "stop":
            return bool(self._stops)
        return self._ended not in (None, "length")

    def _commit(self, unit: Unit, text: str, outcome: Outcome) -> None:
        self._waiting.popleft()
        self._units -= 1
        text = self._joined_to(self._committed, text)
        if outcome == "replace":
            self._meter.rewritten(text)
        else:
            self._meter.kept(text, unit.tokens, cut=len(text) < len(unit.text.strip()))
        self._committed += text
        self._actions.append(
            Deliver(
                text=text,
                unit=Committed(
                    index=self._index,
                    original=unit.text,
                    text=text,
                    outcome=outcome,
                    branch=unit.branch,
                    end=bool(unit.verdict and unit.verdict.end),
                    review=unit.review,
                    error=unit.error.message if unit.error else None,
                ),
            )
        )
        self._index += 1

    def _joined_to(self, before: str, text: str) -> str:
        """`text` as it follows `before`: whitespace goes with an opening that was deleted."""
        return text if before or self._index == 0 else text.lstrip()

    def _start_reviews(self) -> None:
        in_flight = len(self._reviews)
        ahead = ""
        for unit in self._waiting:
            if in_flight >= self._policy.review_ahead:
                return
            if not isinstance(unit, Unit):
                continue
            if unit.verdict is not None and not unit.verdict.kept:
                return  # what follows it will be dropped or reviewed again
            if not (unit.passed or unit.review is not None):
                in_flight += 1
                self._start_review(unit, ahead)
            ahead += self._joined_to(self._committed + ahead, unit.text)
        if (
            self._policy.early_review
            and self._early is None
            and in_flight < self._policy.review_ahead
            and self._branch_open
            and self._splitter.seems_over
        ):
            text = Sentence(self._splitter.rest)
            self._early = unit_of(text, self._branch, 0, passed=False)
            self._start_review(self._early, ahead)

    def _start_review(self, unit: Unit, ahead: str) -> None:
        """`ahead`: the text that will have been committed between now and the unit."""
        unit.review = self._next_review
        self._next_review += 1
        self._reviews[unit.review] = unit
        scope: Literal["sentence", "whole"] = "whole" if self._whole else "sentence"
        review = Review(
            self._conversation, self._committed + ahead, unit.core, scope, self._policy.strength
        )
        self._actions.append(StartReview(unit.review, review))

    def _adopt_early(self, unit: Unit) -> None:
        """The sentence that was asked about too early has come, and is what was asked about."""
        early, self._early = self._early, None
        assert early is not None
        assert early.review is not None
        unit.review, unit.verdict, unit.error = early.review, early.verdict, early.error
        if early.review in self._reviews:
            self._reviews[early.review] = unit

    def _drop_early(self) -> None:
        """It was not the end of a sentence, or its place is not what it was."""
        early, self._early = self._early, None
        if early is not None and early.review is not None:
            self._reviews.pop(early.review, None)
            self._actions.append(DropReview(early.review))

    def _drop_reviews(self, *, keep_units: bool) -> None:
        self._drop_early()
        for review in self._reviews:
            self._actions.append(DropReview(review))
        self._reviews.clear()
        if keep_units:
            for unit in self._waiting:
                if isinstance(unit, Unit):
                    unit.review = unit.verdict = unit.error = None

    def _drop_line(self) -> None:
        self._drop_reviews(keep_units=False)
        self._discarded += sum(
            item.tokens for item in self._waiting if isinstance(item, Unit | Part)
        )
        self._waiting.clear()
        self._units = 0

    # --- branches --------------------------------------------------------------------------

    def _new_splitter(self) -> Splitter:
        if self._whole:
            return WholeAnswer()
        # A continuation may start inside a fence, or in the middle of a line.
        return SentenceSplitter(max_chars=self._policy.max_sentence_chars, after=self._committed)

    def _open_branch(self) -> None:
        self._branch += 1
        self._branch_open = True
        self._rewritten = self._told = False
        self._ended = None
        self._splitter = self._new_splitter()
        prefix = self._committed.rstrip()
        self._owed = self._committed[len(prefix) :]
        self._actions.append(OpenBranch(self._branch, prefix, self._meter.open_branch()))

    def _close_branch(self) -> None:
        if self._branch_open:
            self._branch_open = False
            self._discarded += self._meter.untaken
            self._actions.append(CloseBranch(self._branch))

    def _finish(self, finish_reason: str, usage: Usage | None) -> None:
        rewritten = self._rewritten
        if usage is None and self._waiting and isinstance(ended := self._waiting[-1], End):
            # The branch has told its usage already; that of text still waiting is not delivered.
            usage = ended.usage
            rewritten = rewritten or len(self._waiting) > 1
        total = self._meter.usage(usage, rewritten=rewritten)
        if total is None and not self._told:
            # Closed before the upstream had counted: the client is told the best estimate.
            asked = sum(len(turn.text) for turn in self._conversation)
            total = self._meter.guess(asked)
        self._stop()
        self._actions.append(Finish(finish_reason, total, self.cost))

    def _fail(self, error: ProxyError) -> None:
        self._stop()
        self._actions.append(Fail(error))

    def _stop(self) -> None:
        self._done = True
        self._drop_line()
        self._close_branch()

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
