"""How much later a reply ends because it is aligned.

Compared with an upstream whose text is delivered as it comes, time is lost in three places: behind
a sentence that is rewritten, until the upstream writes on from its new text; at the end, after the
upstream's own, until the last verdict; and where the upstream is read no further because too much
text waits. A sentence that is kept while the upstream writes on costs nothing: it came later, but
the end did not.

What is lost is known of every piece of text when it arrives. Where a sentence is rewritten, what
was lost after its arrival is counted anew, so that no time counts twice. Pure: the caller tells
the time, in seconds of a monotonic clock.
"""

from collections import deque
from typing import NamedTuple


class _Mark(NamedTuple):
    """`time` is when the text up to `end` had arrived, `lost` what was lost until then."""

    end: int
    time: float
    lost: float

    def until(self, now: float) -> float:
        """What is lost if all since then is."""
        return self.lost + max(0.0, now - self.time)


class AddedTime:
    """Of one reply. Text is told by its place: the branch, and the characters before its end."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._arrived: dict[int, deque[_Mark]] = {}
        self._ended: dict[int, _Mark] = {}
        self._branch = 0  # the one that writes
        self._opened: tuple[_Mark, float] | None = None  # it has not written yet: lost from, at
        self._last: _Mark | None = None  # of the sentence that was delivered last
        self._delivered = 0.0  # when that was

    @property
    def seconds(self) -> float:
        """All that was lost, once the reply has ended."""
        since = self._ended.get(self._branch, self._last)
        return self._lost if since is None else since.until(self._delivered)

    def opened(self, branch: int, now: float, *, after_a_break: bool) -> None:
        """The upstream was asked to go on from what is committed. A break is not the aligner's."""
        self._branch = branch
        self._opened = None if after_a_break else (self._last or _Mark(0, now, self._lost), now)

    def went_back(self, branch: int, now: float) -> None:
        """The upstream does not go on: `branch`, set aside in the meantime, is read again."""
        if self._opened is not None:
            self._lost += max(0.0, now - self._opened[1])
        self._branch, self._opened = branch, None

    def arrived(self, branch: int, characters: int, now: float) -> None:
        """Text of a branch."""
        self._wrote(now)
        marks = self._arrived.setdefault(branch, deque())
        end = marks[-1].end + characters if marks else characters
        marks.append(_Mark(end, now, self._lost))

    def ended(self, branch: int, now: float) -> None:
        """No more text will come on a branch."""
        self._wrote(now)
        self._ended[branch] = _Mark(0, now, self._lost)

    def held(self, seconds: float) -> None:
        """The branch was not read for so long because too much text waited."""
        self._lost += seconds

    def delivered(self, branch: int, end: int, now: float) -> float:
        """A sentence that arrived on a branch was committed; the time since its last character had
        come."""
        self._delivered = now
        marks = self._arrived.get(branch)
        if not marks:
            return 0.0
        # The last stays, to count the characters on from.
        while marks[0].end < end and len(marks) > 1:
            marks.popleft()
        self._last = marks[0]
        return max(0.0, now - self._last.time)

    def _wrote(self, now: float) -> None:
        if self._opened is not None:
            since, _ = self._opened
            self._lost = since.until(now)
            self._opened = None
