"""What the loop is told (events) and what it asks for (actions). Plain data, no behaviour.

Branches are numbered from 0 in the order they are opened, reviews in the order they are started.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Committed, Cost, Review, Usage, Verdict


class IllegalEvent(RuntimeError):
    """The session told the loop something that cannot have happened: a bug, never the peer's."""


# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextArrived:
    """Text of a branch; `tokens` is how many of the upstream's tokens it stands for."""

    branch: int
    text: str
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class PartArrived:
    """A delta that is not prose: reasoning, a piece of a tool call, a refusal."""

    branch: int
    part: Mapping[str, Any]
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class PromptMetered:
    """The upstream told how many prompt tokens a branch has, the continued prefix included."""

    branch: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TextEnded:
    """No more text will come on a branch; its end, with the usage, is still to be told."""

    branch: int
    finish_reason: str


@dataclass(frozen=True, slots=True)
class BranchEnded:
    branch: int
    finish_reason: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class BranchBroke:
    branch: int
    error: ProxyError


@dataclass(frozen=True, slots=True)
class ReviewDone:
    review: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ReviewProgress:
    """The beginning of what a sentence becomes: final, and longer each time."""

    review: int
    text: str


@dataclass(frozen=True, slots=True)
class ReviewBroke:
    review: int
    error: ProxyError


BranchEvent = TextArrived | PartArrived | PromptMetered | TextEnded | BranchEnded | BranchBroke
Event = BranchEvent | ReviewProgress | ReviewDone | ReviewBroke

# --- actions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenBranch:
    """Run the upstream from `prefix` (no trailing whitespace; "" for the first branch).

    `after_a_break`: because the branch before it broke.
    """

    branch: int
    prefix: str
    max_tokens: int | None
    after_a_break: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class CloseBranch:
    """Stop reading a branch. Every `OpenBranch` is followed by exactly one of these."""

    branch: int


@dataclass(frozen=True, slots=True)
class PauseBranch:
    """Tell nothing more of a branch until it is resumed or closed."""

    branch: int


@dataclass(frozen=True, slots=True)
class ResumeBranch:
    branch: int


@dataclass(frozen=True, slots=True)
class StartReview:
    review: int
    request: Review


@dataclass(frozen=True, slots=True)
class Expect:
    """A hint for the aligner: such a review may come, its sentence still growing."""

    request: Review


@dataclass(frozen=True, slots=True)
class DropReview:
    """The answer is no longer wanted."""

    review: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand to the client, in order. See `Delivery` for what the fields mean."""

    text: str = ""
    part: Mapping[str, Any] | None = None
    unit: Committed | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    finish_reason: str
    usage: Usage | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Fail:
    error: ProxyError


Action = (
    OpenBranch
    | PauseBranch
    | ResumeBranch
    | CloseBranch
    | StartReview
    | Expect
    | DropReview
    | Deliver
    | Finish
    | Fail
)
