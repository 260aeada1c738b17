"""Which upstream serves which model: by the routes, or by the upstreams' `/models`, merged and
remembered.

Without routes requests go by what was last heard, without asking first; only a name that nobody is
known to serve makes the directory ask again, once, and no oftener than every second: a client that
asks for what there is not must not have every upstream asked as often. Concurrent askers share one
refresh.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from stream_aligner_proxy.core.errors import (
    ModelNotFound,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from stream_aligner_proxy.upstream.routing.member import Member, down
from stream_aligner_proxy.upstream.routing.patterns import Pattern
from stream_aligner_proxy.upstream.routing.table import Table, Target, Targets

Models = list[dict[str, object]]

_TTL_SECONDS = 30.0
_LIST_SECONDS = 5.0
# Where there is nothing to list but an error, or a name that nobody serves; and between pings.
_AGAIN_SECONDS = 1.0
# A probe waits for two or so: an upstream that hangs must not make the others' replica unready.
_PING_SECONDS = 1.0


class Directory:
    """The models of all upstreams. Without a `table` of routes, where two serve a name the one
    configured first gets it. `declared`: names and patterns by upstream, for those not to be asked.
    """

    def __init__(
        self,
        upstreams: Sequence[Member],
        *,
        table: Table | None = None,
        declared: Mapping[str, Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        ttl: float = _TTL_SECONDS,
    ) -> None:
        self._upstreams = tuple(upstreams)
        self._table = table
        self._declared = {
            name: tuple(map(Pattern, models)) for name, models in (declared or {}).items()
        }
        self._clock = clock
        self._ttl = ttl
        self._lists: dict[str, Models] = {
            name: [{"id": pattern.text} for pattern in patterns if not pattern.wild]
            for name, patterns in self._declared.items()
        }
        self._learnt: dict[str, Member] = {}  # by a client's key: routed, never listed
        self._failures: dict[str, UpstreamError] = {}
        self._refreshed: float | None = None
        self._refreshes = 0
        self._lock = asyncio.Lock()
        self._pings: dict[str, str] = {}
        self._pinged: float | None = None
        self._pinging = asyncio.Lock()

    @property
    def upstreams(self) -> tuple[Member, ...]:
        return self._upstreams

    async def targets(self, model: str, headers: Mapping[str, str] | None = None) -> Targets:
        """Who can serve `model`; raises like `pick`."""
        if self._table is None:
            return Targets((Target(await self.pick(model, headers), model),))
        if (found := self._table.targets(model)) is None:
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        return found

    async def pick(self, model: str, headers: Mapping[str, str] | None = None) -> Member:
        """The upstream that serves `model`. Raises `ModelNotFound` or `UpstreamUnreachable`.

        `headers` are the client's, for upstreams that want its key.
        """
        if found := self._owner(model):
            return found
        if self._past(self._refreshed, _AGAIN_SECONDS):
            await self.refresh()
        else:
            self._note_who_is_shut()
        if found := self._owner(model):
            return found
        if len(self._upstreams) == 1 and self._failures:
            # It cannot list its models (or not now): let it say itself what it thinks of the name.
            return self._upstreams[0]
        if found := await self._owner_by_key(model, headers or {}):
            return found
        down = [name for name, error in self._failures.items() if _is_down(error)]
        if down:
            raise UpstreamUnreachable(
                f"No reachable upstream serves the model '{model}', and these could not be asked: "
                f"{', '.join(down)}.",
                status=503,
            )
        raise ModelNotFound(f"The model '{model}' does not exist.", param="model")

    async def models(self, headers: Mapping[str, str]) -> Models:
        """All models, each once. `headers` are the client's, for upstreams that want its key.

        Raises `UpstreamError` where no upstream could be asked.
        """
        if self._stale():
            await self.refresh()
        merged: dict[str, dict[str, object]] = {}
        # A server without `/models` is no failure: it has nothing to list.
        down = [error for error in self._failures.values() if _is_down(error)]
        for upstream in self._upstreams:
            try:
                models = await self._of(upstream, headers)
            except UpstreamError as error:
                down.insert(0, error)
                continue
            for model in models:
                id = str(model["id"])
                if self._table is None or self._table.leads(id, upstream.name):
                    merged.setdefault(id, _described(model, upstream.name))
        for name in self._table.names if self._table is not None else ():
            merged.setdefault(name, _described({"id": name}, "route"))
        if not merged and down:
            raise down[0]
        return list(merged.values())

    async def refresh(self) -> None:
        """Ask every upstream; what cannot be asked keeps its last known list."""
        seen = self._refreshes
        async with self._lock:
            if self._refreshes != seen:
                return  # somebody else's refresh ended while this one waited
            self._note_who_is_shut()
            async with asyncio.TaskGroup() as group:
                for upstream in self._upstreams:
                    group.create_task(self._ask(upstream))
            self._refreshes += 1
            self._refreshed = self._clock()

    async def pings(self) -> dict[str, str]:
        """How each upstream is, by name: `ok`, or the code of the error; for a second the same.
        Whoever asks whether the proxy is ready shows no key, and must not have every upstream asked
        as often."""
        async with self._pinging:
            if self._past(self._pinged, _AGAIN_SECONDS):
                self._pings = await self._ping_all()
                self._pinged = self._clock()
            return dict(self._pings)

    async def _ping_all(self) -> dict[str, str]:
        """All are asked at once; where one has answered, the others have what is left of a
        second."""
        answers = {upstream.name: UpstreamTimeout.code for upstream in self._upstreams}

        async def ask(upstream: Member) -> None:
            try:
                await upstream.ping()
                answers[upstream.name] = "ok"
            except UpstreamError as error:
                answers[upstream.name] = error.code or error.type

        async with asyncio.TaskGroup() as group:
            waiting = {group.create_task(ask(upstream)) for upstream in self._upstreams}
            _, waiting = await asyncio.wait(waiting, timeout=_PING_SECONDS)
            while waiting and "ok" not in answers.values():
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
        return answers

    def _stale(self) -> bool:
        bare = not any(self._lists.values()) and any(map(_is_down, self._failures.values()))
        return self._past(self._refreshed, _AGAIN_SECONDS if bare else self._ttl)

    def _past(self, at: float | None, seconds: float) -> bool:
        """Whether what was heard `at` is older than that, or nothing was heard yet."""
        return at is None or self._clock() - at > seconds

    def _note_who_is_shut(self) -> None:
        for upstream in self._upstreams:
            if upstream.health.shut and upstream.name not in self._declared:
                self._failures.setdefault(upstream.name, down([upstream]))

    async def _ask(self, upstream: Member) -> None:
        if upstream.name in self._declared:
            return
        if upstream.health.shut:
            return  # nobody is to wait for it: a request that names no known model would
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                models = await upstream.models()
        except UpstreamError as error:
            self._failures[upstream.name] = error
        except TimeoutError:
            self._failures[upstream.name] = UpstreamTimeout(
                f"upstream '{upstream.name}' did not list its models in {_LIST_SECONDS:.0f} s"
            )
        else:
            self._failures.pop(upstream.name, None)
            self._lists[upstream.name] = [
                model for model in models if isinstance(model.get("id"), str)
            ]

    async def _of(self, upstream: Member, headers: Mapping[str, str]) -> Models:
        """One upstream's list; asked with the client's own key where it wants one, and then not
        remembered, for another client may not see the same."""
        failure = self._failures.get(upstream.name)
        wants_key = failure is not None and failure.status in (401, 403)
        if wants_key and "authorization" in headers:
            return [m for m in await upstream.models(headers) if isinstance(m.get("id"), str)]
        return self._lists.get(upstream.name, [])

    def _owner(self, model: str) -> Member | None:
        for upstream in self._upstreams:
            if any(known["id"] == model for known in self._lists.get(upstream.name, ())):
                return upstream
            patterns = self._declared.get(upstream.name, ())
            if any(pattern.match(model) is not None for pattern in patterns):
                return upstream
        return self._learnt.get(model)

    async def _owner_by_key(self, model: str, headers: Mapping[str, str]) -> Member | None:
        for upstream in self._upstreams:
            try:
                models = await self._of(upstream, headers)
            except UpstreamError:
                continue
            if any(known["id"] == model for known in models):
                self._learnt[model] = upstream
                return upstream
        return None


def _is_down(error: UpstreamError) -> bool:
    """Whether asking later could help; 404 and 405 mean that it has no such route."""
    return not (isinstance(error, UpstreamRejected) and error.status in (404, 405, 501))


def _described(model: Mapping[str, object], owner: str) -> dict[str, object]:
    """The fields that SDKs require are there whatever the upstream left out."""
    return {"object": "model", "created": 0, "owned_by": owner, **model}
