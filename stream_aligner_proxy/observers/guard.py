"""Rule 12: an observer that fails is counted and logged; the session never notices."""

import logging
from collections.abc import Callable, Mapping, Sequence

from stream_aligner_proxy.core.records import Committed, Cost, Finished, Review, Verdict
from stream_aligner_proxy.core.watching import HeldBy, Observer, Opening, Watch

_log = logging.getLogger(__name__)


class Guarded(Observer):
    """Many observers as one that never raises; `on_failure` is called instead."""

    def __init__(self, observers: Sequence[Observer], on_failure: Callable[[], None]) -> None:
        self._observers = tuple(observers)
        self._on_failure = on_failure

    def opened(self, opening: Opening) -> Watch:
        watches = []
        for observer in self._observers:
            try:
                watches.append(observer.opened(opening))
            except Exception as error:  # noqa: BLE001 - this is the boundary the rule asks for
                self.failed(observer, error)
        return _Watches(self, tuple(watches))

    def failed(self, who: Observer | Watch, error: Exception) -> None:
        # Without the traceback: it could show a sentence.
        _log.error("the observer %s raised %s", type(who).__name__, type(error).__name__)
        self._on_failure()


class _Watches(Watch):
    """What the observers watch one reply with."""

    __slots__ = ("_guard", "_watches")

    def __init__(self, guard: Guarded, watches: tuple[Watch, ...]) -> None:
        self._guard = guard
        self._watches = watches

    def _tell(self, call: Callable[[Watch], object]) -> None:
        for watch in self._watches:
            try:
                call(watch)
            except Exception as error:  # noqa: BLE001 - this is the boundary the rule asks for
                self._guard.failed(watch, error)

    def context(self, branch: int) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._tell(lambda watch: headers.update(watch.context(branch)))
        return headers

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self._tell(lambda watch: watch.branch_opened(branch, prefix_chars))

    def branch_answered(self, branch: int, upstream: str) -> None:
        self._tell(lambda watch: watch.branch_answered(branch, upstream))

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        self._tell(lambda watch: watch.branch_closed(branch, error))

    def review_started(self, review: int, asked: Review) -> None:
        self._tell(lambda watch: watch.review_started(review, asked))

    def review_context(self, review: int) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._tell(lambda watch: headers.update(watch.review_context(review)))
        return headers

    def reviewed(
        self, review: int, verdict: Verdict | None, seconds: float, error: str | None = None
    ) -> None:
        self._tell(lambda watch: watch.reviewed(review, verdict, seconds, error))

    def review_dropped(self, review: int) -> None:
        self._tell(lambda watch: watch.review_dropped(review))

    def held(self, seconds: float, by: HeldBy) -> None:
        self._tell(lambda watch: watch.held(seconds, by))

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        self._tell(lambda watch: watch.committed(unit, review_seconds))

    def delivered(self, unit: Committed, seconds: float) -> None:
        self._tell(lambda watch: watch.delivered(unit, seconds))

    def first_text(self, seconds: float) -> None:
        self._tell(lambda watch: watch.first_text(seconds))

    def relayed(self, tokens: int) -> None:
        self._tell(lambda watch: watch.relayed(tokens))

    def refused(self) -> None:
        self._tell(lambda watch: watch.refused())

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        self._tell(lambda watch: watch.closed(outcome, seconds, cost, finished))
