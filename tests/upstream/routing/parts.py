"""Upstreams under a script, each a real server, and leases over them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stream_aligner_proxy.core.health import Health
from stream_aligner_proxy.core.records import ChatRequest, Turn
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from stream_aligner_proxy.upstream.routing.lease import Lease
from stream_aligner_proxy.upstream.routing.member import Member, Terms
from stream_aligner_proxy.upstream.routing.table import Target, Targets
from stream_aligner_proxy.upstream.ways import Setting
from tests.servers import refused_address, serve

REPLY = "One is here. Two is here. Three is here."
# For an upstream that is silent by its script, and for one that is not, however busy the machine.
QUICK = Timeouts(connect=2, first_byte=0.5, between_chunks=2, total=10, ping=1)
PATIENT = Timeouts(connect=10, first_byte=20, between_chunks=20, total=60, ping=10)


@dataclass
class Told:
    """A `Watcher`."""

    retries: list[tuple[str, str]] = field(default_factory=list)
    failovers: int = 0

    def retried(self, upstream: str, reason: str) -> None:
        self.retries.append((upstream, reason))

    def failed_over(self) -> None:
        self.failovers += 1


@dataclass
class Fleet:
    """Servers by name; `None` in `start` is one where nothing listens."""

    servers: dict[str, ScriptedUpstream | None]
    members: dict[str, Member]
    told: Told = field(default_factory=Told)

    def lease(
        self, to: str, fallback: str = "", *, model: str = "m", request: ChatRequest | None = None
    ) -> Lease:
        """Over the targets whose one-letter names are in `to` and `fallback`."""
        targets = Targets(
            tuple(Target(self.members[name], model) for name in to),
            tuple(Target(self.members[name], model) for name in fallback),
        )
        return Lease(targets, request or ask(), self.told)

    def asked(self) -> dict[str, int]:
        return {name: s.opened for name, s in self.servers.items() if s is not None}


def ask(question: str = "q", **body: Any) -> ChatRequest:
    messages = [{"role": "user", "content": question}]
    return ChatRequest("m", {"model": "m", "messages": messages, **body}, (Turn("user", question),))


@asynccontextmanager
async def fleet(
    terms: Mapping[str, Terms] | None = None,
    continuation: Mapping[str, Setting] | None = None,
    **faults: Fault | None,
) -> AsyncIterator[Fleet]:
    """A server for each name, with the fault it has; `None`: nothing listens there."""
    async with AsyncExitStack() as stack:
        servers: dict[str, ScriptedUpstream | None] = {}
        members: dict[str, Member] = {}
        for name, fault in faults.items():
            server = (
                None if fault is None else ScriptedUpstream(Script((Rule(REPLY, fault=fault),)))
            )
            address = refused_address()
            if server is not None:
                address = await stack.enter_async_context(serve(server))
            own = (terms or {}).get(name, Terms())
            client = HttpUpstream(
                name,
                f"{address}/v1",
                "vllm",
                continuation=(continuation or {}).get(name, "auto"),
                timeouts=QUICK if fault and fault.stall is not None else PATIENT,
                session_header=own.session_header,
            )
            members[name] = Member(client, own, health=Health(shortest_pause=0.01))
            stack.push_async_callback(members[name].aclose)
            servers[name] = server
        yield Fleet(servers, members)


async def text(lease: Lease, prefix: str = "", request: ChatRequest | None = None) -> str:
    pieces = []
    async with lease.open(request or ask(), prefix=prefix) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.text)
    return "".join(pieces)
