"""The seams: what the session needs from the layers below it, and nothing about how they do it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from stream_aligner_proxy.core.records import (
    ChatRequest,
    Chunk,
    Continuation,
    Review,
    Scope,
    Verdict,
)

# Told the beginning of a replacement while the rest is still being written.
Progress = Callable[[str], None]


class Aligner(Protocol):
    """Reviews a sentence (or a whole answer).

    `review` may be called concurrently from one event loop and must not block it. Cancelling the
    task that awaits it withdraws the review. Failures are `ReviewError`.
    """

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[Scope]:
        """What this aligner can judge: its prompt profile decides."""
        ...

    @property
    def strengths(self) -> tuple[float, float]:
        """The least and the greatest `Review.strength` it obeys; both `NEUTRAL` for one without
        the dial. Known after `start`."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it can review now: from the end of `start` until `close` or a final failure."""
        ...

    async def start(self) -> None:
        """Load and warm up. Raises `ConfigError` for what can never work."""
        ...

    def expect(self, review: Review) -> None:
        """A hint: such a review may come, its sentence still growing (empty: not begun yet).

        An aligner with a cache may read this much now. It must return at once and never raise.
        """
        ...

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """The verdict. `progress`, where it is given and the aligner writes text, is called from
        the event loop with the beginning of what the sentence becomes: final, longer each time,
        without white space around it. The verdict's text begins with all that was told; for `keep`
        this is the sentence."""
        ...

    async def close(self) -> None: ...


class ReviewQueue(Protocol):
    """Reviews that an aligner has not taken up yet."""

    waited: Callable[[float], None]
    """Told of each that was taken up how long that took, in seconds; to be set by who counts."""

    @property
    def waiting(self) -> int: ...


@runtime_checkable
class Queueing(Protocol):
    """An aligner at which reviews may have to wait."""

    queue: ReviewQueue


class Upstream(Protocol):
    """One LLM service that writes replies."""

    @property
    def name(self) -> str: ...

    def continuation(self, request: ChatRequest) -> Continuation:
        """How a reply to this request would be continued from a given prefix."""
        ...

    def open(
        self, request: ChatRequest, *, prefix: str = "", max_tokens: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Run the request as one branch, continuing `prefix` when it is not empty.

        Entering sends the request and raises `UpstreamError` on a refusal; leaving closes the
        connection, which is what makes the upstream stop. The last chunk has a `finish_reason`
        (a usage-only chunk may follow); a stream that ends without one raises `UpstreamGarbled`.
        Where it does not continue the prefix, `ContinuationFailed` is raised, by entering or
        instead of the first text.
        """
        ...

    async def models(self) -> list[dict[str, object]]:
        """The upstream's `/models` data."""
        ...
