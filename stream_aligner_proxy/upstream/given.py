"""An upstream that has written already: a given answer, as one chunk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stream_aligner_proxy.core.records import ChatRequest, Chunk, Continuation


class GivenAnswer:
    """Implements `core.ports.Upstream`. It writes nothing else, so it continues nothing."""

    name = "given"

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def continuation(self, request: ChatRequest) -> Continuation:
        return Continuation("rewrite-only")

    @asynccontextmanager
    async def open(
        self, request: ChatRequest, *, prefix: str = "", max_tokens: int | None = None
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        yield self._chunks()

    async def _chunks(self) -> AsyncIterator[Chunk]:
        # With its end, so that the last sentence is known to be whole when reviews begin.
        yield Chunk(self._answer, finish_reason="stop")

    async def models(self) -> list[dict[str, object]]:
        return []
