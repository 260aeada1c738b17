"""How far ahead of the last verdict it is worth to read and to review.

A sentence `n` places behind the one being judged is of use only if all before it are kept. With
the share kept so far in this reply, `kept`, that happens `kept ** n` times; where that is less
than one in twenty, the sentence is left with the upstream. Behind an aligner that keeps everything
the loop reads to the bound, behind one that rewrites every other sentence about four ahead.
"""

from math import log

from stream_aligner_proxy.core.records import Policy

_WORTH = 1 / 20
_NEWEST = 1 / 8  # the weight of the newest verdict in the share
_LEAST = 2


class Window:
    """`reading`: units that may wait; `reviews`: those in flight. Fixed without `adaptive`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._text_kept = self._reviews_kept = 1.0
        self.reading = policy.lookahead
        self.reviews = policy.review_ahead

    def judged(self, *, kept: bool, restarts: bool = False) -> None:
        """A sentence was kept; or rewritten, which voids the reviews made ahead, and the text read
        ahead too if the upstream `restarts`."""
        if not self._policy.adaptive:
            return
        self._text_kept += (float(not restarts) - self._text_kept) * _NEWEST
        self._reviews_kept += (float(kept) - self._reviews_kept) * _NEWEST
        self.reading = _depth(self._text_kept, self._policy.lookahead)
        self.reviews = _depth(self._reviews_kept, self._policy.review_ahead)


def _depth(kept: float, most: int) -> int:
    if kept >= 1:
        return most
    return min(max(int(log(_WORTH) / log(kept)), _LEAST), most)
