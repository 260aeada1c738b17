"""The upstream of one reply: a first choice, others for when it cannot, and where it is now.

Nothing is handed out before there is something to hand out. Until then a failure may be retried or
another target asked, and the client notices nothing; from then on a failure is the loop's affair,
and the branch it opens next goes to another target. All branches of a reply otherwise stay with
the one that wrote first, where their prefix is cached.

An upstream whose breaker is open is not asked. A reply under way is the exception: where nobody
else can, it asks all the same, for what the client has cannot be taken back.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    RequestError,
    UpstreamError,
    UpstreamTimeout,
)
from stream_aligner_proxy.core.health import Pass
from stream_aligner_proxy.core.records import ChatRequest, Chunk, Continuation
from stream_aligner_proxy.upstream.counting import cannot_count
from stream_aligner_proxy.upstream.routing.choosing import conversation_key, draw, session_id
from stream_aligner_proxy.upstream.routing.handing_out import (
    Answer,
    Pieces,
    begin_chunks,
    begin_frames,
    begin_pieces,
)
from stream_aligner_proxy.upstream.routing.member import Member, Watcher, down
from stream_aligner_proxy.upstream.routing.table import Target, Targets
from stream_aligner_proxy.upstream.routing.tries import Tries, admitted

_log = logging.getLogger(__name__)
_Got = TypeVar("_Got")
_Enter = Callable[[Target, AsyncExitStack], Awaitable[_Got]]


class Lease:
    """Implements `core.ports.Upstream`, and `relay`, for one reply to `request`."""

    def __init__(self, targets: Targets, request: ChatRequest, watcher: Watcher) -> None:
        self._request = request
        self._watcher = watcher
        self._key = conversation_key(request)
        self._order = self._ordered(targets)
        self._current = self._order[0]
        self._broken: set[Target] = set()  # failed in this reply
        self._under_way = False  # something was handed out
        self._blamed: set[Member] = set()  # by this reply, which counts once however often it tries
        self._open: Counter[Member] = Counter()

    def _ordered(self, targets: Targets) -> list[Target]:
        """The chosen one first; then the rest as configured."""
        to = targets.to
        if len(to) > 1:
            healthy = [target for target in to if _well(target)]
            chosen = max(
                healthy or to, key=lambda target: draw(self._key, target.name, target.weight)
            )
            to = (chosen, *(target for target in to if target is not chosen))
        return [*to, *targets.fallback]

    @property
    def name(self) -> str:
        """Of the upstream that writes, or would be asked first."""
        return self._current.member.name

    @property
    def relays(self) -> bool:
        return self._current.member.relays

    def continuation(self, request: ChatRequest) -> Continuation:
        """That of the target which the next branch would go to."""
        target = self._best(self._order)
        return target.member.client.continuation(self._asked(request, target))

    def way(self, request: ChatRequest) -> Continuation:
        """How the upstream that writes would continue."""
        return self._current.member.client.continuation(self._asked(request, self._current))

    def completes(self, request: ChatRequest) -> bool:
        """Whether the upstream that writes goes on from the prompt of a text completion."""
        return self._current.member.client.completes(self._asked(request, self._current))

    async def models(self) -> list[dict[str, object]]:
        return await self._current.member.models()

    @asynccontextmanager
    async def open(
        self, request: ChatRequest, *, prefix: str = "", max_tokens: int | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """See the port. Raises `Overloaded` where every target writes all the replies it may."""

        def able(target: Target) -> bool:
            asked = self._asked(request, target)
            return target.member.client.continuation(asked).possible

        async def enter(target: Target, stack: AsyncExitStack) -> AsyncIterator[Chunk]:
            chunks = await stack.enter_async_context(
                target.member.client.open(
                    self._asked(request, target), prefix=prefix, max_tokens=max_tokens
                )
            )
            return await begin_chunks(chunks)

        targets = self._order if not prefix else [t for t in self._order if able(t)]
        if not targets:
            raise ContinuationFailed("no upstream of this route can continue the reply")
        self._under_way = self._under_way or bool(prefix)
        async with self._serving(targets, enter) as chunks:
            yield chunks

    @asynccontextmanager
    async def relay(
        self,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        stream: bool,
        request_id: str = "",
        path: str = "chat/completions",
    ) -> AsyncIterator[Answer]:
        """See `HttpUpstream.relay`. The answer names the model that the client asked for."""

        async def enter(target: Target, stack: AsyncExitStack) -> Answer:
            asked = self._request.model
            relayed = await stack.enter_async_context(
                target.member.client.relay(
                    body if target.model == asked else {**body, "model": target.model},
                    self._headers(headers, target),
                    stream=stream,
                    request_id=request_id,
                    path=path,
                )
            )
            return await begin_frames(relayed, None if target.model == asked else asked)

        targets = [target for target in self._order if target.member.relays]
        async with self._serving(targets, enter) as answer:
            yield answer

    @asynccontextmanager
    async def forward(
        self,
        path: str,
        content: Callable[[str], bytes],
        content_type: str,
        headers: Mapping[str, str],
        *,
        request_id: str = "",
    ) -> AsyncIterator[Pieces]:
        """Pass a request to `path`, and whatever is answered, through unread. `content` is the body
        that names a model. Raises `RequestError` where no target speaks OpenAI's API."""

        async def enter(target: Target, stack: AsyncExitStack) -> Pieces:
            asked = self._request.model
            given = await stack.enter_async_context(
                target.member.client.forward(
                    path,
                    content(target.model),
                    content_type,
                    self._headers(headers, target),
                    request_id=request_id,
                )
            )
            return await begin_pieces(given, None if target.model == asked else asked)

        targets = [target for target in self._order if target.member.relays]
        if not targets:
            raise RequestError(
                f"The upstream of the model '{self._request.model}' does not speak OpenAI's API: "
                f"it has no /v1/{path}.",
                status=404,
                param="model",
                code="unsupported_by_upstream",
            )
        async with self._serving(targets, enter) as pieces:
            yield pieces

    async def count_tokens(self) -> int:
        """Of the conversation. Raises `RequestError` where no target can tell."""

        async def enter(target: Target, stack: AsyncExitStack) -> int:
            return await target.member.client.count_tokens(self._asked(self._request, target))

        targets = [target for target in self._order if target.member.client.counts]
        if not targets:
            raise cannot_count(self._request.model, "its API has no way to ask")
        async with self._serving(targets, enter) as count:
            return count

    # --- one branch --------------------------------------------------------------------------

    @asynccontextmanager
    async def _serving(self, targets: list[Target], enter: _Enter[_Got]) -> AsyncIterator[_Got]:
        """What `enter` gets from the first target that answers. Raises `UpstreamDown` where none
        may be asked."""
        always = self._under_way
        askable = list(targets) if always else admitted(targets)
        if not askable:
            raise _closed_off(targets)
        tries = Tries(askable, self._best, always=always)
        if tries.target is not self._current and self._current in self._broken:
            self._tell_failover(self._current)
        now = asyncio.get_running_loop().time
        deadline = now() + tries.target.member.terms.total
        while True:
            target = tries.target
            async with AsyncExitStack() as stack:
                await self._take_place(target, stack)
                failure: UpstreamError
                tried: Pass | None = None
                try:
                    # After the wait for a place: it may have been long.
                    tried = target.member.enter(always=always)
                    stack.callback(tried.leave)
                    async with asyncio.timeout_at(deadline):
                        got = await enter(target, stack)
                except UpstreamError as error:
                    failure = error
                except TimeoutError:
                    failure = UpstreamTimeout(f"upstream '{target.member.name}' took too long")
                else:
                    tried.begun()
                    self._current, self._under_way = target, True
                    try:
                        yield got
                    except UpstreamError as error:
                        self._failed(target, error, tried)
                        raise
                    tried.succeeded()
                    return
            # What it had opened is closed now.
            failure.upstream = target.member.name
            pause = tries.once_more(failure)
            if pause is None:
                if tried is not None:
                    self._failed(target, failure, tried)
                pause = tries.move_on(failure)
                if tries.target is not target:
                    self._tell_failover(target)
            if now() + pause >= deadline:
                raise failure
            if tries.target.member is target.member:
                self._watcher.retried(target.member.name, type(failure).code or "upstream_error")
            if pause:
                await asyncio.sleep(pause)

    def _best(self, targets: list[Target]) -> Target:
        """Healthy before ill, free before full, where the reply is now before all others."""

        def rank(target: Target) -> tuple[bool, bool, bool, bool]:
            member = target.member
            return (
                not member.health.admits,
                target in self._broken or not member.health.usable,
                member.full and not self._open[member],
                target is not self._current,
            )

        return min(targets, key=rank)  # of equals the first

    async def _take_place(self, target: Target, stack: AsyncExitStack) -> None:
        """One place per reply, however many of its branches are open for a moment: a branch that
        waited for the one it replaces would wait for ever."""
        member = target.member
        if not self._open[member]:
            await member.take_place()
        self._open[member] += 1
        member.open += 1
        stack.callback(self._leave, member)

    def _leave(self, member: Member) -> None:
        member.open -= 1
        self._open[member] -= 1
        if not self._open[member]:
            member.leave_place()

    def _failed(self, target: Target, error: UpstreamError, tried: Pass) -> None:
        if error.transient:
            self._broken.add(target)
        target.member.failed(error, None if target.member in self._blamed else tried)
        self._blamed.add(target.member)

    def _tell_failover(self, target: Target) -> None:
        self._watcher.failed_over()
        _log.warning(
            "request %s: upstream '%s' failed (%s); another is asked",
            self._request.request_id,
            target.member.name,
            target.member.last_error,
        )

    # --- what a target is asked --------------------------------------------------------------

    def _asked(self, request: ChatRequest, target: Target) -> ChatRequest:
        headers = self._headers(request.headers, target)
        if target.model == request.model and headers is request.headers:
            return request
        body = {**request.body, "model": target.model}
        return replace(request, model=target.model, body=body, headers=headers)

    def _headers(self, headers: Mapping[str, str], target: Target) -> Mapping[str, str]:
        name = target.member.terms.session_header
        return headers if name is None else {**headers, name: session_id(self._key)}


def _well(target: Target) -> bool:
    return target.member.health.usable and target.member.health.admits


def _closed_off(targets: Iterable[Target]) -> UpstreamError:
    members = list(dict.fromkeys(target.member for target in targets))
    for member in members:
        member.health.reject()
    return down(members)
