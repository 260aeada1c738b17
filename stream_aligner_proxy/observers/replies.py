"""What is known of each reply while it is written and when it has ended: for the log and `/debug`.

Text is kept only where the operator asked for it (`server.log_content`).
"""

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Committed, Cost, Finished, Review, Verdict
from stream_aligner_proxy.core.watching import Observer, Opening, Watch

# A model's name is the client's text.
_MODEL_CHARS = 100
_CONTENT_CHARS = 20_000


class Told:
    """What is known of one HTTP request: `replies` are its choices. `trace_id`: to be set by
    whoever traces it. `error`: the code of what its client was told."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.trace_id: str | None = None
        self.error: str | None = None
        self.replies: list[Record] = []


# Of the request that the running task belongs to.
current: ContextVar[Told | None] = ContextVar("stream_aligner_request", default=None)


class Record(Watch):
    """One reply. Times are seconds."""

    __slots__ = (
        "_clock",
        "_content",
        "_on_closed",
        "_reviews",
        "begun",
        "cost",
        "finished",
        "first_text_seconds",
        "open_branches",
        "opening",
        "original",
        "outcome",
        "text",
        "upstream",
    )

    def __init__(
        self,
        opening: Opening,
        on_closed: Callable[["Record"], None],
        clock: Callable[[], float],
        *,
        content: bool,
    ) -> None:
        self.opening = opening
        self.begun = clock()
        self.upstream: str | None = None
        self.open_branches = 0
        self.first_text_seconds: float | None = None
        self.outcome: str | None = None
        self.cost = Cost()
        self.finished: Finished | None = None
        self.original: list[str] = []
        self.text: list[str] = []
        self._reviews: set[int] = set()
        self._on_closed = on_closed
        self._clock = clock
        self._content = content

    @property
    def age(self) -> float:
        return self._clock() - self.begun

    @property
    def waits_for(self) -> str:
        """`aligner` while it reviews, else `upstream` while that writes, else the `client`."""
        if self._reviews:
            return "aligner"
        return "upstream" if self.open_branches else "client"

    @property
    def model(self) -> str:
        return self.opening.request.model[:_MODEL_CHARS]

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self.open_branches += 1

    def branch_answered(self, branch: int, upstream: str) -> None:
        self.upstream = upstream

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        self.open_branches -= 1

    def review_started(self, review: int, asked: Review) -> None:
        self._reviews.add(review)

    def reviewed(
        self, review: int, verdict: Verdict | None, seconds: float, error: str | None = None
    ) -> None:
        self._reviews.discard(review)

    def review_dropped(self, review: int) -> None:
        self._reviews.discard(review)

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        if self._content:
            self.original.append(unit.original)
            self.text.append(unit.text)

    def first_text(self, seconds: float) -> None:
        self.first_text_seconds = seconds

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        self.outcome, self.cost, self.finished = outcome, cost, finished
        self._on_closed(self)

    def content(self) -> dict[str, Any]:
        """What was asked, written and delivered, where that is kept."""
        if not self._content:
            return {}
        turns = self.opening.request.conversation
        return {
            "question": turns[-1].text[:_CONTENT_CHARS] if turns else "",
            "original": "".join(self.original)[:_CONTENT_CHARS],
            "text": "".join(self.text)[:_CONTENT_CHARS],
        }


class Replies(Observer):
    """Keeps a record of every open reply, and gives it to the request that it belongs to."""

    def __init__(
        self, *, content: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.open: set[Record] = set()
        self._content = content
        self._clock = clock

    def refused(self, error: ProxyError) -> None:
        """The client of the running request is told this."""
        if (told := current.get()) is not None:
            told.error = error.code or error.type

    def opened(self, opening: Opening) -> Watch:
        record = Record(opening, self.open.discard, self._clock, content=self._content)
        self.open.add(record)
        if (told := current.get()) is not None:
            told.replies.append(record)
        return record
