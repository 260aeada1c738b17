"""What an API must be able to write. Bytes out, no I/O; one object per reply.

`choice` numbers the replies that one request asked for, from 0; only chat and plain completions
have more than one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Delivery, Finished


class Events(Protocol):
    """A reply as server-sent events. What it returns is written as it is; empty is nothing."""

    def first(self) -> bytes:
        """What comes before anything is delivered."""
        ...

    def delivery(self, delivery: Delivery, choice: int) -> bytes: ...

    def finished(self, finished: Finished, choice: int) -> bytes:
        """One choice has ended."""
        ...

    def last(self, finished: Sequence[Finished]) -> bytes:
        """All have, in the order of their numbers: the end of the stream."""
        ...


class Whole(Protocol):
    """The same reply as one JSON object."""

    def add(self, delivery: Delivery, choice: int) -> None: ...

    def completion(self, finished: Sequence[Finished]) -> bytes: ...


class Shape(Protocol):
    """How an API words errors: as the body of an HTTP answer, and inside a stream, where it is the
    last that comes."""

    def body(self, error: ProxyError, request_id: str) -> Mapping[str, Any]: ...

    def end(self, error: ProxyError, request_id: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Face:
    """One API: makers of its writers for a planned reply, and its errors."""

    events: Callable[[Plan], Events]
    whole: Callable[[Plan], Whole]
    shape: Shape
