"""One upstream among others: its health, how many replies it may write at once, and its counts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from stream_aligner_proxy.core.errors import Overloaded, UpstreamError, UpstreamRejected
from stream_aligner_proxy.core.ports import Upstream
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.routing.health import Health, tells_of_illness

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

    def failed(self, error: UpstreamError) -> None:
        """A reply of it failed."""
        refused = isinstance(error, UpstreamRejected)
        self.last_error = "refused" if refused else type(error).code
        if not tells_of_illness(error):
            return
        self.health.failed()
        if not self.health.usable and (self._recovery is None or self._recovery.done()):
            self._recovery = asyncio.create_task(self._recover())

    def succeeded(self) -> None:
        self.health.succeeded()

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        return await self.client.models(headers)

    async def ping(self) -> None:
        """See `HttpUpstream.ping`. An answer lets the next reply decide on its health."""
        await self.client.ping()
        self.health.answered()

    async def _recover(self) -> None:
        """Ping until it answers, or a reply has gone well."""
        while not self.health.usable:
            await asyncio.sleep(self.health.pause * _dice.uniform(0.8, 1.2))
            try:
                await self.ping()
            except UpstreamError:
                self.health.unanswered()

    async def aclose(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()  # nothing of it has to be waited for
        await self.client.aclose()
