"""One upstream among others: its health, how many replies it may write at once, and its counts."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from stream_aligner_proxy.core.errors import (
    Overloaded,
    UpstreamDown,
    UpstreamError,
    UpstreamRejected,
)
from stream_aligner_proxy.core.health import Health, Pass
from stream_aligner_proxy.core.ports import Upstream
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.routing.health import tells_of_illness

_dice = Random()


class Relayed(Protocol):
    """An answer that is passed on: `body` where it is JSON, else `frames`."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes | None: ...

    @property
    def frames(self) -> AsyncIterator[bytes]: ...


class Forwarded(Protocol):
    """An answer of any kind that is passed on in pieces."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def pieces(self) -> AsyncIterator[bytes]: ...


class Client(Upstream, Protocol):
    """What is needed of an upstream's client; see `HttpUpstream`.

    `relays`: it speaks the client's API, so that a request in mode `off` can pass through as it is.
    """

    @property
    def relays(self) -> bool: ...

    def relay(
        self,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        stream: bool,
        request_id: str = "",
        path: str = "chat/completions",
    ) -> AbstractAsyncContextManager[Relayed]: ...

    def forward(
        self,
        path: str,
        content: bytes,
        content_type: str,
        headers: Mapping[str, str],
        *,
        request_id: str = "",
    ) -> AbstractAsyncContextManager[Forwarded]: ...

    def completes(self, request: ChatRequest) -> bool: ...

    @property
    def counts(self) -> bool: ...

    async def count_tokens(self, request: ChatRequest) -> int: ...

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]: ...

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


class Watcher(Protocol):
    """Told what a client does not see. Must neither raise nor wait."""

    def retried(self, upstream: str, reason: str) -> None:
        """The same upstream is asked once more."""
        ...

    def failed_over(self) -> None:
        """Another upstream is asked instead."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """How an upstream may be used. Times are in seconds: `patience` is how long a request may wait
    for its place where `max_concurrent` are being written, `total` how long all tries may take."""

    retries: int = 1
    max_concurrent: int | None = None
    patience: float = 120.0
    total: float = 1800.0
    session_header: str | None = None


class Member:
    """Used from one event loop. `found` tells what is known of its way to continue, for `/status`:
    dialect, way, class, sure, probed_at, error."""

    def __init__(
        self,
        client: Client,
        terms: Terms | None = None,
        *,
        found: Callable[[], Mapping[str, object]] = dict,
        health: Health | None = None,
    ) -> None:
        self.client = client
        self.name = client.name
        self.terms = terms or Terms()
        self.found = found
        self.health = health or Health()
        self.open = 0  # branches and relays that are being read
        self.last_error: str | None = None
        most = self.terms.max_concurrent
        self._places = asyncio.Semaphore(most) if most is not None else None
        self._recovery: asyncio.Task[None] | None = None
        self._next_ping = 0.0  # loop time

    @property
    def relays(self) -> bool:
        return self.client.relays

    @property
    def full(self) -> bool:
        return self._places is not None and self._places.locked()

    async def take_place(self) -> None:
        """Wait for one, as long as the terms say. Raises `Overloaded`."""
        if self._places is None:
            return
        try:
            async with asyncio.timeout(self.terms.patience):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(
                f"upstream '{self.name}' is writing as many replies as it may",
                headers={"retry-after": "1"},
            ) from None

    def leave_place(self) -> None:
        if self._places is not None:
            self._places.release()

    def enter(self, *, always: bool = False) -> Pass:
        """Leave to ask it. Raises `UpstreamDown` where its breaker lets nobody through now, unless
        `always`."""
        if (tried := self.health.enter(always=always)) is None:
            raise down([self])
        return tried

    @property
    def retry_after(self) -> float:
        """Seconds until it is known whether it may be asked, as far as can be told."""
        return max(0.0, self._next_ping - asyncio.get_running_loop().time())

    def failed(self, error: UpstreamError, tried: Pass | None) -> None:
        """A reply of it failed. `tried` is None where that was told already: one request that no
        upstream can bear must not shut out all others by being tried again."""
        if not isinstance(error, UpstreamRejected):
            self.last_error = type(error).code
        elif not error.by_request:
            self.last_error = "refused"
        if tried is None or not tells_of_illness(error):
            return
        tried.failed()
        if not self.health.usable and (self._recovery is None or self._recovery.done()):
            self._ping_later()
            self._recovery = asyncio.create_task(self._recover())

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        return await self.client.models(headers)

    async def ping(self) -> None:
        """See `HttpUpstream.ping`. An answer lets the next reply decide on its health."""
        await self.client.ping()
        self.health.answered()

    async def _recover(self) -> None:
        """Ping until it answers, or a reply has gone well."""
        while not self.health.usable:
            await asyncio.sleep(self.retry_after)
            try:
                await self.ping()
            except UpstreamError:
                self.health.unanswered()
                self._ping_later()

    def _ping_later(self) -> None:
        pause = self.health.pause * _dice.uniform(0.8, 1.2)
        self._next_ping = asyncio.get_running_loop().time() + pause

    async def aclose(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()  # nothing of it has to be waited for
        self.health.close()
        await self.client.aclose()


def down(members: Iterable[Member]) -> UpstreamDown:
    """That none of these is asked now, and when it is worth coming again."""
    members = list(members)
    names = ", ".join(f"'{member.name}'" for member in members)
    seconds = max(1, math.ceil(min(member.retry_after for member in members)))
    error = UpstreamDown(
        f"upstream {names} failed several times and is not asked before it has recovered; "
        f"come again in {seconds} s",
        headers={"retry-after": str(seconds)},
    )
    error.upstream = members[0].name
    return error
