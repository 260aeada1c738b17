"""What is told of a revision while it is written: the contract of `core.ports.Progress`, kept."""

from stream_aligner_proxy.core.ports import Progress

# Each look at an unfinished answer reads all of it: one for every token would be quadratic, so
# what is told may lag by this share.
_LAG = 16


class Telling:
    """Passes on to `progress` (None: nobody listens) what grew, and keeps count of when to look."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._told = ""
        self._next = 1

    def due(self, tokens: int) -> bool:
        """Whether an answer of so many tokens is worth another look."""
        return self._progress is not None and tokens >= self._next

    def tell(self, beginning: str, tokens: int) -> None:
        """What is final of an answer of `tokens` tokens."""
        self._next = tokens + max(1, tokens // _LAG)
        grown = len(beginning) > len(self._told) and beginning.startswith(self._told)
        if grown and self._progress is not None:
            self._told = beginning
            self._progress(beginning)

    def stop(self) -> None:
        """Tell no more."""
        self._progress = None
