"""How many reviews are worth having in flight at once.

A review made `n` places ahead of the sentence being judged is of use only if all before it are
kept. With the share of sentences kept so far in this reply, `kept`, that happens `kept ** n` times;
where that is less than `_WORTH`, the review is not made yet.
"""

from math import log

from stream_aligner_proxy.core.records import Policy

_WORTH = 1 / 50
_NEWEST = 1 / 16  # the weight of the newest verdict in the share
_LEAST = 2


class Window:
    """`reviews`: how many may be in flight; `review_ahead`, or fewer where `adaptive`."""

    def __init__(self, policy: Policy) -> None:
        self._adaptive = policy.adaptive
        self._most = self.reviews = policy.review_ahead
        self._kept = 1.0

    def judged(self, *, kept: bool) -> None:
        if self._adaptive:
            self._kept += (float(kept) - self._kept) * _NEWEST
            worth = self._most if self._kept == 1 else int(log(_WORTH) / log(self._kept)) + 1
            self.reviews = min(max(worth, _LEAST), self._most)
