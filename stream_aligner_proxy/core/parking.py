"""Branches that may be needed again, and what is done when one breaks.

Where it is not sure that the upstream continues a text, the branch that a rewrite ends is parked:
it is not read, and what waited of it is kept, until the new one has written something. Refuses the
new one to continue, the old one goes on, and is only rewritten from then on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stream_aligner_proxy.core.branch import Branch
from stream_aligner_proxy.core.errors import ProxyError, UpstreamError
from stream_aligner_proxy.core.line import Item, Part, Unit
from stream_aligner_proxy.core.meter import BranchCount
from stream_aligner_proxy.core.records import THINKING


@dataclass(frozen=True, slots=True)
class Parked:
    """A branch, what waited behind the sentence that was rewritten, and its token counts."""

    branch: Branch
    items: tuple[Item, ...]
    count: BranchCount

    @property
    def tokens(self) -> int:
        """The upstream's tokens that are lost with it."""
        waiting = sum(item.tokens for item in self.items if isinstance(item, Unit | Part))
        return waiting + self.count.untaken


def can_help(error: ProxyError) -> bool:
    """Whether asking again may go better."""
    return isinstance(error, UpstreamError) and error.transient


def can_begin_again(committed: str, parts: Mapping[str, int]) -> bool:
    """Whether the client would not notice that the reply is begun a second time."""
    return not committed and not parts


def can_go_on(committed: str, parts: Mapping[str, int]) -> bool:
    """Whether a new branch can follow what the client has: text, and at most thoughts before it."""
    return bool(committed) and THINKING.issuperset(parts)
