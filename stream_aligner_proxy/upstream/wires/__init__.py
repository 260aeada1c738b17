"""Wires: the APIs that upstreams speak. Each turns an OpenAI chat body into a request of its own,
and the answer's events into chunks. Pure: no I/O."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.rejections import Refusals


class Reader(Protocol):
    """One branch's events to chunks."""

    @property
    def finished(self) -> bool: ...

    def read(self, event: SseEvent) -> Iterator[Chunk]: ...

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]: ...


class Wire(Protocol):
    """`relays`: whether an OpenAI request can be passed through as it is. Addresses are below the
    upstream's `base_url`, the query included."""

    @property
    def relays(self) -> bool: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def models_path(self) -> str: ...

    def path(self, body: Mapping[str, Any]) -> str: ...

    def branch(
        self, body: Mapping[str, Any], dialect: Any, *, prefix: str, max_tokens: int | None
    ) -> dict[str, Any]: ...

    def reader(self, refusals: Refusals) -> Reader: ...

    def counting(self, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The address and the body that ask how many tokens the first branch of `body` reads."""
        ...

    def counted(self, answer: Mapping[str, Any]) -> object:
        """The number that an answer to these tells."""
        ...

    def models(self, answer: Mapping[str, Any]) -> object:
        """The list of objects with an `id` that an answer to `models_path` holds."""
        ...
