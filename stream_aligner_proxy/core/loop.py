"""The alignment loop as a state machine: events in, actions out; no I/O, no clock, no tasks.

    start() ─► RUNNING ──(every event)──► RUNNING ──► DONE   by Finish, Fail or abandon()

One branch runs at a time. Its text is cut into sentences, which wait in order until the head of
the line has a verdict. While they wait the branch keeps writing (optimistic continuation) and
later sentences are reviewed ahead, each as if those before it were kept. The last one may be asked
about before it is sure to be a whole one (`early_review`); its verdict counts if it was.

    keep                     deliver; nothing restarts
    replace, can continue    deliver the new text, drop all that waits, close, open from it
    replace, cannot          deliver the new text, keep the branch, review what waits again
    replace, not material    like "cannot", where the policy restarts on material edits only
    replace with ""          like "cannot": the same prefix would only bring the same sentence back
    end                      deliver, then finish: the upstream is not asked for more

Where it is not sure that the upstream continues (`sure`), "can continue" does not close the old
branch but parks it, unread, with all that waits, until the new one has written something; if that
one refuses, the old one goes on as under "cannot", for the rest of the reply. A branch that breaks
(`transient`) is followed by another from the committed text, `max_resumes` times in a reply.

What the aligner tells of a verdict while it still writes it is delivered at once for the head of
the line. When that, or the verdict on a sentence further back, shows that the upstream will be
restarted, the running branch is closed then, and the next opened when the rewrite is committed.

The end of a branch, and its failure, stand in line behind its text, so what came before is
delivered first, and a correction made in time makes them void. The invariants the tests pin:
committed text only grows and equals what was delivered; verdicts commit in order; events of
closed branches and dropped reviews change nothing; as many branches are closed as opened.

The pieces: `branch` (one upstream run), `cutting` (its text into units), `line` (what waits),
`reviews`, `commits` (the text that is final), `window` (how far ahead), `parking` (branches that
may be needed again). This file decides.
"""

from stream_aligner_proxy.core.branch import Branch
from stream_aligner_proxy.core.commits import Commits
from stream_aligner_proxy.core.edits import differs_by
from stream_aligner_proxy.core.errors import ProxyError, ReviewError
from stream_aligner_proxy.core.events import (
    Action,
    BranchBroke,
    BranchEnded,
    CloseBranch,
    Event,
    Fail,
    Finish,
    IllegalEvent,
    OpenBranch,
    PartArrived,
    PauseBranch,
    PromptMetered,
    ResumeBranch,
    ReviewBroke,
    ReviewDone,
    ReviewProgress,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.line import MAX_ITEMS, Broken, End, Line, Part, Unit
from stream_aligner_proxy.core.parking import Parked, can_begin_again, can_go_on, can_help
from stream_aligner_proxy.core.records import ChatRequest, Cost, Mode, Policy, Usage
from stream_aligner_proxy.core.reviews import Reviews, took_back
from stream_aligner_proxy.core.sentences import Sentence
from stream_aligner_proxy.core.window import Window


class AlignmentLoop:
    """The loop of one reply in mode `stream` or `whole`.

    `can_continue` is whether the upstream can continue a given prefix for this request; without
    it the loop is rewrite-only. Whole answers are never continued: their branch has ended.
    `sure`: it is known to do so. `measures`: a continued branch's prompt is the request's and the
    committed text, without instructions of the proxy's.
    """

    def __init__(
        self,
        request: ChatRequest,
        policy: Policy,
        *,
        can_continue: bool,
        sure: bool = True,
        measures: bool = True,
    ) -> None:
        self._request = request
        self._policy = policy
        self._whole = policy.mode is Mode.WHOLE
        self._continues = can_continue and not self._whole
        self._sure = sure
        self._measures = measures
        self._continuations_left = policy.max_continuations if self._continues else 0
        self._resumes = self._refused = 0
        self._actions: list[Action] = []
        self._line = Line()
        self._commits = Commits(request, self._actions)
        self._meter = self._commits.meter
        self._window = Window(policy)
        self._reviews = Reviews(
            request,
            policy,
            line=self._line,
            commits=self._commits,
            window=self._window,
            actions=self._actions,
        )
        self._branch = Branch(-1, policy, "")  # before the first is opened
        self._branch.open = False
        self._opened = 0
        self._parked: Parked | None = None
        self._discarded = 0
        self._done = False

    # --- what the session asks -------------------------------------------------------------

    @property
    def committed(self) -> str:
        """Everything committed so far: exactly what was delivered as text."""
        return self._commits.text

    @property
    def done(self) -> bool:
        return self._done

    @property
    def wants_text(self) -> bool:
        """Whether the running branch should be read on; False is back-pressure (rule 6)."""
        return self._line.length < self._policy.lookahead and len(self._line) < MAX_ITEMS

    @property
    def cost(self) -> Cost:
        return Cost(
            branches=self._opened,
            reviews=self._reviews.started,
            reviews_in_vain=self._reviews.started - self._reviews.used,
            corrections=self._commits.corrections,
            unreviewed=self._commits.unreviewed,
            skipped=self._commits.skipped,
            resumes=self._resumes,
            refused_continuations=self._refused,
            resent_prefix_tokens=self._meter.resent,
            discarded_tokens=self._discarded,
            aligner_prompt_tokens=self._reviews.prompt_tokens,
            aligner_completion_tokens=self._reviews.completion_tokens,
        )

    def start(self) -> list[Action]:
        """Open the first branch."""
        if self._opened or self._done:
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
                if self._parked is not None:
                    self._let_go_of_the_parked()
                if not self._text(text, tokens):
                    self._reviews.look_at(self._branch)
                    return self._take_actions()
            case PartArrived(_, part, tokens):
                self._let_go_of_the_parked()
                self._line_up(self._branch.splitter.flush(more=True))
                self._part(Part(part, tokens))
            case PromptMetered(_, tokens):
                self._meter.prompt(tokens)
            case TextEnded(_, finish_reason):
                self._let_go_of_the_parked()
                self._end_text(finish_reason)
            case BranchEnded(_, finish_reason, usage):
                self._let_go_of_the_parked()
                self._branch.told_end = True
                self._end(finish_reason, usage)
            case BranchBroke(_, error):
                if self._parked is not None:
                    self._go_back(self._parked)
                else:
                    self._break(error)
            case ReviewDone(review, verdict):
                self._reviews.done(review, verdict)
            case ReviewProgress(review, text):
                self._reviews.progressed(review, text)
            case ReviewBroke(review, error):
                self._reviews.broke(review, error)
        self._advance()
        return self._take_actions()

    # --- events ----------------------------------------------------------------------------

    def _concerns(self, event: Event) -> bool:
        """Whether the event can still change anything. Raises `IllegalEvent` for a bug."""
        match event:
            case ReviewDone(review) | ReviewProgress(review) | ReviewBroke(review):
                if not 0 <= review < self._reviews.started:
                    raise IllegalEvent(f"review {review} was never started")
                return not self._done
            case _:
                if not 0 <= event.branch < self._opened:
                    raise IllegalEvent(f"branch {event.branch} was never opened")
                return self._branch.open and event.branch == self._branch.number

    def _text(self, text: str, tokens: int) -> bool:
        """Take in text; whether anything but the sentence being written has changed."""
        text = self._branch.new_text(text)
        self._meter.arrived(len(text), tokens)
        if self._meter.overrun:
            self._end("length", None)
            return True
        splitter = self._branch.splitter
        units = splitter.feed(text)
        self._line_up(units)
        early = self._reviews.early
        wrong = early is not None and splitter.rest.strip() != early.core
        if wrong:
            self._reviews.drop_early()
        too_long = self._whole and splitter.pending > self._policy.max_whole_chars
        if too_long:
            self._too_long()
        return bool(units) or wrong or too_long

    def _part(self, part: Part) -> None:
        if not self._branch.splitter.pending:
            self._line.add(part)
            return
        # A whole answer that has begun comes first, and it is whole only at its end.
        self._branch.behind.append(part)
        if len(self._branch.behind) > self._policy.max_whole_chars:
            self._too_long()

    def _too_long(self) -> None:
        self._break(ReviewError("the reply is too long to review as a whole"))

    def _break(self, error: ProxyError) -> None:
        self._close_branch()
        self._line.add(Broken(error))

    def _end_text(self, finish_reason: str) -> None:
        self._branch.ended = finish_reason
        self._line_up(self._branch.splitter.flush())
        for part in self._branch.behind:
            self._line.add(part)
        self._branch.behind.clear()

    def _end(self, finish_reason: str, usage: Usage | None) -> None:
        self._end_text(finish_reason)
        self._line.add(End(finish_reason, usage))
        self._close_branch()

    def _line_up(self, sentences: list[Sentence]) -> None:
        for sentence in sentences:
            unit = self._branch.unit(sentence, self._meter.take(len(sentence.text)))
            unit.skipped = not unit.passed and not self._reviews.left
            unit.passed = unit.passed or unit.skipped
            self._reviews.adopt_early(unit)
            self._line.add(unit)

    # --- the line --------------------------------------------------------------------------

    def _advance(self) -> None:
        """Commit all that can be committed, then start the reviews that may run."""
        while len(self._line) and not self._done:
            match self._line.head:
                case Unit() as unit:
                    if not self._settle(unit):
                        self._commits.begin(unit)
                        break
                case Part() as part:
                    self._line.take()
                    self._commits.part(part)
                case End(finish_reason, usage):
                    self._line.take()
                    self._finish(finish_reason, usage)
                case Broken(error):
                    self._line.take()
                    self._recover(error)
        if not self._done and not len(self._line) and not self._branch.open:
            self._resume()
        if not self._done:
            self._let_go_of_the_void()
            self._reviews.start_waiting()
            self._reviews.look_at(self._branch)

    def _settle(self, unit: Unit) -> bool:
        """Commit the head of the line if it can be; False where its verdict is awaited."""
        if unit.passed:
            self._line.take()
            self._go_on(self._commits.leave(unit, "passed", measured=self._branch.rewritten))
        elif unit.error is not None:
            if not self._policy.fail_open or self._commits.sent:
                # Of a sentence that is out in part the rest is not known.
                self._fail(unit.error)
                return True
            self._line.take()
            self._go_on(self._commits.leave(unit, "unreviewed", measured=self._branch.rewritten))
        elif unit.verdict is None or unit.new is None:
            return False
        elif not unit.new.startswith(unit.told):
            self._fail(took_back())
        else:
            self._line.take()
            self._reviews.used += 1
            end = unit.verdict.end
            if unit.new == unit.core:
                self._window.judged(kept=True)
                cut = self._commits.leave(unit, "keep", measured=self._branch.rewritten)
                self._go_on(cut or ("stop" if end else None))
            else:
                self._replace(unit, unit.new, end)
        return True

    def _go_on(self, ended: str | None) -> None:
        if ended is not None:
            self._finish(ended, None)

    def _replace(self, unit: Unit, new: str, end: bool) -> None:
        self._branch.rewritten = True
        cut = self._commits.replace(unit, new)
        if end or cut == "stop":
            self._finish("stop", None)
        elif cut or (self._meter.remaining == 0 and not self._whole):
            self._finish("length", None)
        elif new and self._may_continue and self._restarts_on(unit.core, new):
            self._window.judged(kept=False)
            if self._sure:
                self._drop_line()
                self._close_branch()
            else:
                self._park()
            self._continue()
        else:
            # The branch stays. What was reviewed ahead had assumed the old text, and a small edit
            # may change all that follows from it ("12 are left", "13 are left"): it is asked again.
            self._window.judged(kept=False)
            self._reviews.drop_all()
            for waiting in self._line.units():
                waiting.forget_review()

    @property
    def _may_continue(self) -> bool:
        """Whether the upstream could go on from a rewritten text.

        Not where it ended for a reason that a continuation must not get around: one such as
        `content_filter`, or perhaps one of the client's stop strings.
        """
        perhaps_stopped = self._branch.ended == "stop" and self._request.stop
        return (
            self._continuations_left > 0 and not perhaps_stopped and not self._branch.ended_for_good
        )

    def _restarts_on(self, original: str, new: str) -> bool:
        if self._policy.restart_on == "any":
            return True
        return differs_by(original, new, self._policy.material_edit)

    def _let_go_of_the_void(self) -> None:
        """Stop what is written and reviewed behind a sentence that is known to be rewritten.

        The upstream will be restarted from there, or from before it. If, against what was told, it
        is not (a review fails and the policy is to go on, or an earlier sentence is deleted, so
        that this one is judged again), `_resume` asks the upstream once more for what comes next.
        """
        if not self._sure:
            return  # it may be needed
        if self._policy.restart_on != "any" or not self._may_continue:
            return
        unit = next((unit for unit in self._line.units() if not unit.may_be_kept), None)
        if unit is None:
            return
        # Where the branch has ended there is nothing to resume: then only what is sure is dropped.
        sure = self._commits.sent and unit is self._line.head
        if unit.new != "" and (self._branch.open or sure):
            self._discarded += self._line.clear_behind(unit)
            self._reviews.drop_those_gone()
            self._close_branch()

    def _resume(self) -> None:
        """All that waits is committed, and the branch was closed before it had ended."""
        if self._meter.remaining == 0:
            self._finish("length", None)
        else:
            self._continue()

    def _continue(self) -> None:
        self._continuations_left -= 1
        self._open_branch()

    def _recover(self, error: ProxyError) -> None:
        """All before the break is committed: go on from there, or from the start, or fail."""
        committed, parts = self._commits.text, self._commits.parts
        may = can_begin_again(committed, parts) or (self._continues and can_go_on(committed, parts))
        if not (may and can_help(error) and self._resumes < self._policy.max_resumes):
            self._fail(error)
        elif self._meter.remaining == 0:
            self._finish("length", None)
        else:
            self._resumes += 1
            self._open_branch(after_a_break=True)

    # --- parking ---------------------------------------------------------------------------

    def _park(self) -> None:
        """Set the running branch aside, with all that waits."""
        self._reviews.drop_all()
        self._parked = Parked(self._branch, self._line.park(), self._meter.park())
        if self._branch.open:
            self._actions.append(PauseBranch(self._branch.number))

    def _let_go_of_the_parked(self) -> None:
        """The new branch writes: the old one is not needed any more."""
        parked, self._parked = self._parked, None
        if parked is not None:
            self._discarded += parked.tokens
            if parked.branch.open:
                parked.branch.open = False
                self._actions.append(CloseBranch(parked.branch.number))

    def _go_back(self, parked: Parked) -> None:
        """The new branch does not continue: the parked one goes on, only rewritten from now on."""
        self._parked = None
        self._refused += 1
        self._continues = False
        self._continuations_left = 0
        self._close_branch()
        self._branch = parked.branch
        self._meter.unpark(parked.count)
        for item in parked.items:
            self._line.add(item)
        if self._branch.open:
            self._actions.append(ResumeBranch(self._branch.number))

    def _drop_line(self) -> None:
        self._reviews.drop_all()
        self._discarded += self._line.clear()

    # --- branches --------------------------------------------------------------------------

    def _open_branch(self, *, after_a_break: bool = False) -> None:
        self._branch = Branch(self._opened, self._policy, self._commits.text)
        self._opened += 1
        limit = self._meter.open_branch(measures=self._measures)
        branch = self._branch
        self._actions.append(OpenBranch(branch.number, branch.prefix, limit, after_a_break))
        self._reviews.expect_first()

    def _close_branch(self) -> None:
        if self._branch.open:
            self._branch.open = False
            self._discarded += self._meter.untaken
            self._actions.append(CloseBranch(self._branch.number))

    def _finish(self, finish_reason: str, usage: Usage | None) -> None:
        rewritten = self._branch.rewritten
        if usage is None and (ended := self._line.end):
            # The branch has told its usage already; that of text still waiting is not delivered.
            usage = ended.usage
            rewritten = rewritten or len(self._line) > 1
        total = self._meter.usage(usage, rewritten=rewritten)
        if total is None and not (self._branch.told_end and self._measures):
            # Closed before the upstream had counted: the client is told the best estimate.
            asked = sum(len(turn.text) for turn in self._request.conversation)
            total = self._meter.guess(asked)
        self._stop()
        self._actions.append(Finish(finish_reason, total, self.cost))

    def _fail(self, error: ProxyError) -> None:
        self._stop()
        self._actions.append(Fail(error))

    def _stop(self) -> None:
        self._done = True
        self._let_go_of_the_parked()
        self._drop_line()
        self._close_branch()

    def _take_actions(self) -> list[Action]:
        actions = self._actions.copy()
        self._actions.clear()
        return actions
