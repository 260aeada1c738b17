"""The seam to those who watch: metrics, traces, the audit log.

An observer is told that a reply begins and gives a `Watch` for it, which is told the rest. Calls
are made inline: they must neither raise nor wait (rule 12); `observers.guard` wraps them so that
what one raises ends there. Nothing here does anything by itself: observers override what they need.

Times are seconds of a monotonic clock, lengths are characters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stream_aligner_proxy.core.records import (
    ChatRequest,
    Committed,
    Cost,
    Finished,
    Mode,
    Review,
    Verdict,
)

# Why an upstream is not read for a while: as many sentences wait for the aligner as may, or the
# client takes what it is sent too slowly.
HeldBy = Literal["aligner", "client"]


@dataclass(frozen=True, slots=True)
class Opening:
    """A reply, or one choice of it, as it begins.

    `aligner`: its configured name, "" where none works. `path`: of the API that the client asked,
    as in `chat/completions`. `key`: the name of the client's key, None without one. `route`: the
    configured pattern that the model fits, `default` where there are no routes.
    """

    mode: Mode
    request: ChatRequest
    path: str = "chat/completions"
    aligner: str = ""
    key: str | None = None
    streamed: bool = False
    route: str = "default"


class Watch:
    """Told of one reply; `closed` comes last and exactly once."""

    __slots__ = ()

    def context(self, branch: int) -> Mapping[str, str]:
        """Headers that the branch's request takes along: the trace it belongs to. Asked after
        `branch_opened`; replaces what the client sent under these names."""
        return {}

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        """The upstream is asked, to continue so much text; 0 for the first branch."""

    def branch_answered(self, branch: int, upstream: str) -> None:
        """The upstream of that configured name has begun to write it."""

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        """It ended, or was closed; `error` is its code where it broke."""

    def review_started(self, review: int, asked: Review) -> None: ...

    def review_context(self, review: int) -> Mapping[str, str]:
        """What `context` is for a branch, for a review. Asked after `review_started`."""
        return {}

    def reviewed(
        self, review: int, verdict: Verdict | None, seconds: float, error: str | None = None
    ) -> None:
        """The verdict is there; None where the review failed, with the error's code."""

    def review_dropped(self, review: int) -> None:
        """It is of no use any more, whether there is a verdict yet or not."""

    def held(self, seconds: float, by: HeldBy) -> None:
        """The upstream was not read for so long."""

    def committed(self, unit: Committed, review_seconds: float | None) -> None: ...

    def delivered(self, unit: Committed, seconds: float) -> None:
        """Told right after `committed`: so long ago the last of its original text arrived."""

    def first_text(self, seconds: float) -> None:
        """Since the reply began."""

    def relayed(self, tokens: int) -> None:
        """What passed through unread took so many tokens, prompt included."""

    def refused(self) -> None:
        """The upstream refused the request for the request's own fault. Told before `closed`."""

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        """`outcome`: `finished`, `cancelled`, or the code of the error that ended it."""


class Observer:
    """Watches replies."""

    def opened(self, opening: Opening) -> Watch:
        return Watch()


class ClosableObserver(Observer):
    """One that writes or sends what it has seen."""

    def close(self) -> None:
        """Get rid of what waits; bounded in time, and may block for some seconds."""
