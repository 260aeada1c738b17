"""What the routes work with: put together once by the composition root."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stream_aligner_proxy.aligners.breaker import AlignerBreaker
from stream_aligner_proxy.api.admission import Admission
from stream_aligner_proxy.api.canary import Canary, Refusal, never
from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.plan import SCOPE_OF, Rules
from stream_aligner_proxy.core.errors import ModelNotFound, ProxyError, RequestError
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy
from stream_aligner_proxy.core.watching import Observer
from stream_aligner_proxy.upstream.routing.lease import Lease
from stream_aligner_proxy.upstream.routing.member import Watcher
from stream_aligner_proxy.upstream.routing.table import Table


@dataclass(frozen=True, slots=True)
class Candidate:
    """A new aligner beside a route's own, as configured. `canary` is there where it is one."""

    name: str
    aligner: Aligner
    kind: Literal["shadow", "canary"]
    percent: float
    canary: Canary | None = None


@dataclass(frozen=True, slots=True)
class Treatment:
    """How the replies of a route are aligned. `aligner_name` is the configured one, `route` the
    pattern of the model, `default` where there are no routes. `refusal` says why the aligner is not
    asked now."""

    aligner_name: str
    aligner: Aligner
    rules: Rules
    policy: Callable[[Mode, float], Policy]
    route: str = "default"
    refusal: Refusal = never
    candidate: Candidate | None = None

    def for_reply(self, request: ChatRequest, mode: Mode, strength: float) -> "Treatment":
        """The same with the aligner that reviews this reply. Raises `AlignerUnavailable` where a
        reply that must be reviewed cannot be: before the upstream writes what nobody will get."""
        if mode is Mode.OFF:
            return self
        chosen = self
        if self.candidate is not None and self.candidate.canary is not None:
            who = self.candidate.canary.choose(request, SCOPE_OF[mode], strength)
            chosen = replace(self, aligner_name=who.name, aligner=who.aligner, refusal=who.refusal)
        if self.fails_closed(mode, strength) and (refusal := chosen.refusal()):
            raise refusal
        return chosen

    def fails_closed(self, mode: Mode, strength: float) -> bool:
        """Whether a reply ends where its review fails."""
        return mode in (Mode.STREAM, Mode.WHOLE) and not self.policy(mode, strength).fail_open

    def modes(self) -> list[Mode]:
        """The modes that a request may choose and the aligner can work in."""
        return [
            mode
            for mode in Mode
            if self.rules.allows(mode)
            and (mode is Mode.OFF or SCOPE_OF[mode] in self.aligner.scopes)
        ]


@dataclass(slots=True)
class Loaded:
    """Which configuration is served. `at`: Unix seconds; `error`: why a newer one is not, and
    `certificate_error`: likewise of the server's certificate."""

    at: float = field(default_factory=time.time)
    reloads: int = 0
    error: str | None = None
    certificate_error: str | None = None


@dataclass(slots=True)
class Service:
    """The parts of a running proxy. `treatments`: one for each route of the `table`, or a single
    one where there is none. `aligners` and their `breakers` by their configured names, the first
    the default one. `access`: what `/status` tells of it. `sign_in`: the header in which clients
    show a key, None where they need none. `ready` is set when they have been loaded."""

    directory: Directory
    table: Table | None
    treatments: Sequence[Treatment]
    aligners: Mapping[str, Aligner]
    breakers: Mapping[str, AlignerBreaker]
    backends: Mapping[str, str]
    watcher: Watcher
    observer: Observer
    count_error: Callable[[ProxyError], None]
    render_metrics: Callable[[], tuple[bytes, str]]
    max_body_bytes: int
    max_choices: int = 16
    max_messages: int = 4096
    patience: Patience = field(default_factory=Patience)
    page: bool = True
    show_upstream: bool = True
    examples: tuple[str, ...] = ()
    admission: Admission = field(default_factory=Admission)
    loaded: Loaded = field(default_factory=Loaded)
    access: Callable[[], dict[str, Any]] = dict
    sign_in: str | None = None
    ready: bool = False

    def treatment(self, model: str) -> Treatment:
        """How replies of `model` are aligned. Raises `ModelNotFound` where no route fits."""
        if self.table is None:
            return self.treatments[0]
        if (number := self.table.find(model)) is None:
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        return self.treatments[number]

    def check_messages(self, count: int) -> None:
        """Raises `RequestError` for more in one conversation than the operator lets."""
        if count > self.max_messages:
            raise RequestError(
                f"Invalid value for 'messages': {self.max_messages} at most, and these are "
                f"{count}.",
                param="messages",
                code="invalid_value",
            )

    async def lease(self, request: ChatRequest) -> Lease:
        """The upstream of one reply. Raises `ProxyError` where none serves the model."""
        targets = await self.directory.targets(request.model, request.headers)
        return Lease(targets, request, self.watcher)

    def aligner_states(self) -> dict[str, str]:
        """By name: `loading`, `failed` (it cannot review), or as its breaker is: `ok`, `open`,
        `half-open`."""
        return {
            name: (breaker.state if breaker.ready else "failed") if self.ready else "loading"
            for name, breaker in self.breakers.items()
        }

    def lost(self) -> list[str]:
        """The aligners of this process that have died: nothing but a new process has them again.
        One on a server of its own comes back with that."""
        return [
            name
            for name, state in self.aligner_states().items()
            if state == "failed" and self.backends[name] != "remote"
        ]

    def reviews(self) -> bool:
        """Whether every route can review what it must: one that fails open, or delivers the
        original anyway, does without."""
        states = self.aligner_states()
        needed = {
            one.aligner_name
            for one in self.treatments
            if one.fails_closed(one.rules.mode, one.rules.strength)
        }
        return self.ready and all(states[name] in ("ok", "half-open") for name in needed)
