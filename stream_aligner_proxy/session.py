"""Performs one reply's loop: the only place that starts and cancels tasks.

A reader task per branch and a task per review turn what happens into events; the loop answers with
actions, performed on the spot. Deliveries go through an outbox that only `run` empties, so a slow
client fills it, the gate closes, the readers stop reading and the upstream feels it (rule 6).
All tasks live in one task group: on every way out, the client's leaving included, they are
cancelled and awaited before `run` returns (rule 5).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from stream_aligner_proxy.core.added_time import AddedTime
from stream_aligner_proxy.core.errors import ProxyError, RequestError, ReviewError
from stream_aligner_proxy.core.events import (
    Action,
    BranchBroke,
    BranchEnded,
    BranchEvent,
    CloseBranch,
    Deliver,
    DropReview,
    Event,
    Expect,
    Fail,
    Finish,
    OpenBranch,
    PartArrived,
    PauseBranch,
    PromptMetered,
    ResumeBranch,
    ReviewBroke,
    ReviewDone,
    ReviewProgress,
    StartReview,
    TextArrived,
    TextEnded,
)
from stream_aligner_proxy.core.loop import AlignmentLoop
from stream_aligner_proxy.core.passing import PassingLoop
from stream_aligner_proxy.core.ports import Aligner, Upstream
from stream_aligner_proxy.core.probabilities import Probabilities
from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Delivery,
    Finished,
    Mode,
    Policy,
    Usage,
)
from stream_aligner_proxy.core.shadow import ShadowLoop
from stream_aligner_proxy.core.watching import Observer, Opening, Watch

_log = logging.getLogger(__name__)

# Deliveries the client has not taken yet before the readers pause.
_MAX_OUTBOX = 64

# So much of a reply's own beginning is enough to know it again, in characters.
_BEGINNING = 160


class Reply(Protocol):
    """Where a session delivers: the response."""

    async def deliver(self, delivery: Delivery) -> None:
        """Hand one thing to the client. Returning late is back-pressure."""
        ...


class Session:
    """One reply, in mode `off` too where it cannot be relayed as it is. Use once.

    `observer` must not raise: `observers.guard.Guarded` sees to that. `opening` is what it is told
    at the beginning.
    """

    def __init__(
        self,
        request: ChatRequest,
        *,
        upstream: Upstream,
        aligner: Aligner,
        policy: Policy,
        observer: Observer | None = None,
        opening: Opening | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        scope = "whole" if policy.mode is Mode.WHOLE else "sentence"
        if policy.mode is not Mode.OFF and scope not in aligner.scopes:
            raise RequestError(
                f"the aligner {aligner.name!r} cannot review a {scope}: choose another mode",
                param="stream_aligner.mode",
            )
        self._request = request
        self._upstream = upstream
        self._aligner = aligner
        self._policy = policy
        self._observer = observer or Observer()
        self._opening = opening or Opening(policy.mode, request)
        self._watch = Watch()
        self._clock = clock
        self._began = ""  # how the upstream began, before any correction
        way = upstream.continuation(request)
        can_continue = policy.mode is Mode.STREAM and way.possible
        self._loop: AlignmentLoop | ShadowLoop | PassingLoop
        match policy.mode:
            case Mode.OFF:
                self._loop = PassingLoop(request)
            case Mode.SHADOW:
                self._loop = ShadowLoop(request, policy)
            case _:
                self._loop = AlignmentLoop(
                    request,
                    policy,
                    can_continue=can_continue,
                    sure=way.sure,
                    measures=way.way != "instruct",
                )
        self._continuation = way.way if policy.mode is Mode.STREAM else "none"
        self._branches: dict[int, asyncio.Task[None]] = {}
        self._broke: dict[int, str] = {}  # why, of those that the loop has not closed yet
        self._paused: dict[int, asyncio.Event] = {}  # set when the branch may be read again
        self._reviews: dict[int, asyncio.Task[None]] = {}
        self._review_times: dict[int, tuple[float, float | None]] = {}  # started, verdict
        self._added = AddedTime()
        self._probabilities = Probabilities()
        self._about: Mapping[str, Any] = {}  # what the upstream tells of the reply
        self._first_text: float | None = None  # seconds
        self._outbox: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._gate = asyncio.Event()
        self._outcome: Finish | Fail | None = None

    async def run(self, reply: Reply) -> Finished:
        """Deliver the whole reply. Raises `ProxyError` where it cannot be; cancel it to abort."""
        begun = self._clock()
        mode = self._policy.mode
        self._watch = self._observer.opened(self._opening)
        ended = "cancelled"
        finished: Finished | None = None
        outcome: Finish | Fail | None = None
        try:
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    self._perform(self._loop.start())
                    await self._write(reply, begun)
                finally:
                    # Before the group cancels its tasks: nothing that one of them still says may
                    # start another.
                    self._perform(self._loop.abandon())
            outcome, self._outcome = self._outcome, None
            match outcome:
                case Finish(finish_reason, usage, cost):
                    ended = "finished"
                    refused = cost.refused_continuations > 0
                    way = "rewrite-only" if refused else self._continuation
                    finished = Finished(
                        finish_reason,
                        usage,
                        cost,
                        mode,
                        way,
                        added_seconds=self._added.seconds,
                        first_text_seconds=self._first_text,
                        about=self._about,
                    )
                    return finished
                case Fail():
                    ended = outcome.error.code or outcome.error.type
                    if outcome.error.by_request:
                        self._watch.refused()
                    raise outcome.error
                case None:
                    raise RuntimeError("the session ended without an outcome")
        except ExceptionGroup as group:
            ended = "internal_error"
            raise first_error(group) from group
        finally:
            outcome = None  # an error's traceback holds this frame: see `_bare`
            self._watch.closed(ended, self._clock() - begun, self._loop.cost, finished)

    # --- tasks -----------------------------------------------------------------------------

    async def _write(self, reply: Reply, begun: float) -> None:
        """Empty the outbox until there is an outcome."""
        while True:
            while self._outbox:
                delivery = self._outbox.popleft()
                if self._first_text is None and delivery.text:
                    self._tell_first_text(self._clock() - begun)
                await reply.deliver(delivery)
                self._set_gate()
            if self._outcome is not None:
                return
            self._wake.clear()
            await self._wake.wait()

    def _tell_first_text(self, seconds: float) -> None:
        self._first_text = seconds
        self._watch.first_text(seconds)

    async def _read(self, opened: OpenBranch) -> None:
        """Read one branch to its end, or until the loop closes it."""
        branch = opened.branch
        request = self._asked(branch)
        if not opened.prefix:  # another follows one that broke before anything was committed
            self._began = ""
        finish_reason: str | None = None
        usage: Usage | None = None
        metered = False
        try:
            async with self._upstream.open(
                request, prefix=opened.prefix, max_tokens=opened.max_tokens
            ) as chunks:
                self._watch.branch_answered(branch, self._upstream.name)
                async for chunk in chunks:
                    if chunk.usage is not None:
                        usage = chunk.usage
                        if not metered:
                            metered = True
                            await self._tell_loop(PromptMetered(branch, usage.prompt_tokens))
                    if chunk.part is not None:
                        await self._tell_loop(PartArrived(branch, chunk.part, chunk.tokens))
                    if chunk.logprobs:
                        self._probabilities.arrived(branch, chunk.logprobs)
                    if chunk.about is not None:
                        self._about = chunk.about
                    if chunk.text:
                        if branch in self._paused:
                            await self._paused[branch].wait()
                        if not opened.prefix and len(self._began) < _BEGINNING:
                            self._began += chunk.text
                        self._added.arrived(branch, len(chunk.text), self._clock())
                        self._dispatch(TextArrived(branch, chunk.text, chunk.tokens))
                    if chunk.finish_reason and finish_reason is None:
                        # The last sentence need not wait for the usage and the end of the body.
                        finish_reason = chunk.finish_reason
                        self._added.ended(branch, self._clock())
                        await self._tell_loop(TextEnded(branch, finish_reason))
                    if branch not in self._branches:
                        return
                    if not self._gate.is_set():
                        await self._wait_at_the_gate()
                    if branch in self._paused:
                        await self._paused[branch].wait()
            # Only now, though the reason came earlier: the usage comes after it, and a body read
            # to its end gives the connection back to the pool.
            await self._tell_loop(BranchEnded(branch, finish_reason or "stop", usage))
        except ProxyError as error:
            self._broke[branch] = error.code or error.type
            await self._tell_loop(BranchBroke(branch, _bare(error)))

    def _asked(self, branch: int) -> ChatRequest:
        """The request as a branch's upstream gets it."""
        request = self._request
        if branch:
            # Servers take the id for their own: while a closed branch is still being aborted under
            # it, vLLM refuses a second one, or aborts that too (vllm-project/vllm#27987).
            own = request.request_id and f"{request.request_id}-{branch}"
            request = replace(request, request_id=own, began=self._began)
        if context := self._watch.context(branch):
            request = replace(request, headers={**request.headers, **context})
        return request

    async def _wait_at_the_gate(self) -> None:
        full, since = not self._loop.wants_text, self._clock()
        await self._gate.wait()
        seconds = self._clock() - since
        if full:  # it is not only the client that is slow
            self._added.held(seconds)
        self._watch.held(seconds, "aligner" if full else "client")

    async def _tell_loop(self, event: BranchEvent) -> None:
        """Dispatch an event of a branch, when that is not paused."""
        if event.branch in self._paused:
            await self._paused[event.branch].wait()
        self._dispatch(event)

    async def _review(self, started: StartReview) -> None:
        event: Event
        begun = self._clock()
        asked = started.request
        if context := self._watch.review_context(started.review):
            asked = replace(asked, headers=context)

        def progress(text: str) -> None:
            self._dispatch(ReviewProgress(started.review, text))

        try:
            verdict = await self._aligner.review(asked, progress)
            event = ReviewDone(started.review, verdict)
            self._watch.reviewed(started.review, verdict, self._clock() - begun)
        except ProxyError as error:
            event = self._review_broke(started.review, error, begun)
        except Exception:  # noqa: BLE001 - whatever an aligner raises, the sentence is unreviewed
            _log.exception("request %s: the aligner raised", self._request.request_id)
            failed = ReviewError("the aligner failed unexpectedly")
            event = self._review_broke(started.review, failed, begun)
        if times := self._review_times.get(started.review):
            self._review_times[started.review] = (times[0], self._clock())
        self._dispatch(event)

    def _review_broke(self, review: int, error: ProxyError, begun: float) -> Event:
        self._watch.reviewed(review, None, self._clock() - begun, error.code or error.type)
        return ReviewBroke(review, _bare(error))

    # --- events and actions ----------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        self._perform(self._loop.handle(event))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Deliver():
                    self._deliver(action)
                case StartReview(review):
                    self._review_times[review] = (self._clock(), None)
                    self._watch.review_started(review, action.request)
                    self._reviews[review] = self._tasks.create_task(self._review(action))
                case Expect(request):
                    self._aligner.expect(request)
                case DropReview(review):
                    self._cancel(self._reviews.pop(review, None))
                    self._review_times.pop(review, None)
                    self._watch.review_dropped(review)
                case OpenBranch():
                    self._open(action)
                case CloseBranch():
                    self._close(action)
                case PauseBranch(branch):
                    self._paused[branch] = asyncio.Event()
                case ResumeBranch(branch):
                    self._added.went_back(branch, self._clock())
                    self._paused.pop(branch).set()
                case Finish() | Fail():
                    self._outcome = action
                    self._wake.set()
        self._set_gate()

    def _open(self, action: OpenBranch) -> None:
        self._watch.branch_opened(action.branch, len(action.prefix))
        self._branches[action.branch] = self._tasks.create_task(self._read(action))
        if action.branch:
            after_a_break = action.after_a_break
            self._added.opened(action.branch, self._clock(), after_a_break=after_a_break)

    def _close(self, action: CloseBranch) -> None:
        self._cancel(self._branches.pop(action.branch, None))
        self._paused.pop(action.branch, None)
        self._watch.branch_closed(action.branch, self._broke.pop(action.branch, None))

    def _deliver(self, action: Deliver) -> None:
        review_seconds = waited = None
        unit = action.unit
        if unit is not None:
            now = self._clock()
            since = self._added.delivered(unit.branch, unit.start + len(unit.original), now)
            if unit.review is not None:
                self._reviews.pop(unit.review, None)
                begun, judged = self._review_times.pop(unit.review)
                review_seconds = None if judged is None else judged - begun
                waited = now - begun
            self._watch.committed(unit, review_seconds)
            self._watch.delivered(unit, since)
        logprobs = self._logprobs(action.text, unit)
        self._outbox.append(
            Delivery(action.text, action.part, unit, review_seconds, waited, logprobs)
        )
        self._wake.set()

    def _logprobs(self, text: str, unit: Committed | None) -> Sequence[Mapping[str, Any]]:
        if self._policy.mode in (Mode.SHADOW, Mode.OFF):
            return self._probabilities.take_all(0) if text else ()
        if unit is None:
            return ()  # they come with the end of the sentence
        told = self._probabilities.take(unit.branch, unit.start, unit.original)
        return told if unit.text == unit.original and unit.outcome != "replace" else ()

    @staticmethod
    def _cancel(task: asyncio.Task[None] | None) -> None:
        # A task that is here because of its own event returns by itself.
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _set_gate(self) -> None:
        if self._loop.wants_text and len(self._outbox) < _MAX_OUTBOX:
            self._gate.set()
        else:
            self._gate.clear()


def _bare(error: ProxyError) -> ProxyError:
    """Without its traceback: that holds this session, which holds the error, so a reply that failed
    would stay in memory, with all its text, until all garbage is collected."""
    return error.with_traceback(None)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group: what failed first is what the client is told."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
