"""In-memory stand-ins for the seams, for what a server cannot show: who waits for whom."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stream_aligner_proxy.core.records import (
    ChatRequest,
    Chunk,
    Continuation,
    Delivery,
    Review,
    Usage,
    Verdict,
)


class MemoryUpstream:
    """Writes what `write(prefix)` returns; counts what is open and how far it was read.

    An exception in the list is raised at its place; an `asyncio.Event` in it is waited for.
    """

    name = "memory"

    def __init__(self, write: Callable[[str], list], *, continues: bool = True) -> None:
        self.write = write
        self.continues = continues
        self.opened = 0
        self.closed = 0
        self.read = 0
        self.prefixes: list[str] = []

    def continuation(self, request: ChatRequest) -> Continuation:
        return Continuation("prefill" if self.continues else "rewrite-only")

    @asynccontextmanager
    async def open(self, request, *, prefix="", max_tokens=None):
        self.opened += 1
        self.prefixes.append(prefix)
        try:
            yield self._chunks(self.write(prefix), prefix)
        finally:
            self.closed += 1

    async def _chunks(self, items: list, prefix: str) -> AsyncIterator[Chunk]:
        tokens = 0
        for item in items:
            await asyncio.sleep(0)
            match item:
                case str():
                    self.read += 1
                    tokens += 1
                    yield Chunk(text=item)
                case asyncio.Event():
                    await item.wait()
                case Chunk():
                    yield item
                case BaseException():
                    raise item
        yield Chunk(finish_reason="stop", usage=Usage(10 + len(prefix), tokens))

    async def models(self):
        return [{"id": "m"}]


class FunctionAligner:
    """Judges by a function; `gate`, when given, holds every verdict back until it is set."""

    name = "function"
    scopes = frozenset(("sentence", "whole"))
    strengths = (0.5, 0.5)
    ready = True

    def __init__(
        self, judge: Callable[[Review], Verdict] = lambda review: Verdict(), gate=None
    ) -> None:
        self.judge = judge
        self.gate = gate
        self.running = 0
        self.cancelled = 0
        self.asked: list[Review] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def expect(self, review: Review) -> None: ...

    async def review(self, review: Review, progress=None) -> Verdict:
        self.asked.append(review)
        self.running += 1
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            return self.judge(review)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class TellingAligner(FunctionAligner):
    """Tells each word of its revision as it comes."""

    async def review(self, review: Review, progress=None) -> Verdict:
        self.asked.append(review)
        self.running += 1
        try:
            verdict = self.judge(review)
            text = review.sentence if verdict.kept else verdict.replacement
            words = text.split(" ")
            for count in range(1, len(words)):
                await asyncio.sleep(0)
                progress(" ".join(words[:count]))
            await asyncio.sleep(0)
            return verdict
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class ListReply:
    """Collects deliveries; `gate`, when given, is the client's slowness."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self.gate = gate
        self.first = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(delivery.text for delivery in self.deliveries)

    async def deliver(self, delivery: Delivery) -> None:
        self.first.set()
        if self.gate is not None:
            await self.gate.wait()
        self.deliveries.append(delivery)
