"""Whether an upstream is worth asking. Pure: who calls it keeps the time.

    ok ── failures in a row ──► open ── it answers a ping ──► half-open ── a reply ──► ok
                                 ▲                                │
                                 └───────── one failure ──────────┘   (the pause doubles)

Passive: only replies that fail open it. `open` does not forbid to ask; it means that any other is
asked first.
"""

from typing import Literal

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)

State = Literal["ok", "open", "half-open"]


def tells_of_illness(error: UpstreamError) -> bool:
    """Whether `error` speaks against the upstream itself. A 429 may be one client's own limit."""
    if isinstance(error, UpstreamRejected):
        return error.transient and error.status >= 500
    return isinstance(error, UpstreamUnreachable | UpstreamTimeout | UpstreamGarbled)


class Health:
    """`threshold` failures in a row open it; pauses are in seconds, between two pings."""

    def __init__(
        self, *, threshold: int = 3, shortest_pause: float = 1.0, longest_pause: float = 60.0
    ) -> None:
        self._threshold = threshold
        self._shortest = self.pause = shortest_pause
        self._longest = longest_pause
        self._failures = 0
        self.state: State = "ok"

    @property
    def usable(self) -> bool:
        return self.state != "open"

    def failed(self) -> None:
        """A reply failed."""
        self._failures += 1
        if self.state == "half-open":
            self.unanswered()
        if self.state == "half-open" or self._failures >= self._threshold:
            self.state = "open"

    def succeeded(self) -> None:
        """A reply went well."""
        self._failures = 0
        self.pause = self._shortest
        self.state = "ok"

    def answered(self) -> None:
        """A ping was answered: the next reply decides."""
        if self.state == "open":
            self.state = "half-open"

    def unanswered(self) -> None:
        """A ping was not: ask less often."""
        self.pause = min(2 * self.pause, self._longest)
