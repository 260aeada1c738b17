"""Rule 12: an observer that fails is counted and logged; the session never notices."""

import logging
from collections.abc import Callable

from stream_aligner_proxy.core.ports import Observer
from stream_aligner_proxy.core.records import Committed, Cost

_log = logging.getLogger(__name__)


class Guarded:
    """Wraps an observer; `on_failure` is called instead of letting an exception out."""

    def __init__(self, observer: Observer, on_failure: Callable[[], None]) -> None:
        self._observer = observer
        self._on_failure = on_failure

    def _tell(self, call: Callable[[Observer], None]) -> None:
        try:
            call(self._observer)
        except Exception as error:  # noqa: BLE001 - this is the boundary the rule asks for
            # Without the traceback: it could show a sentence.
            _log.error(
                "the observer %s raised %s", type(self._observer).__name__, type(error).__name__
            )
            self._on_failure()

    def opened(self, mode: str, model: str) -> None:
        self._tell(lambda observer: observer.opened(mode, model))

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self._tell(lambda observer: observer.branch_opened(branch, prefix_chars))

    def branch_closed(self, branch: int) -> None:
        self._tell(lambda observer: observer.branch_closed(branch))

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        self._tell(lambda observer: observer.committed(unit, review_seconds))

    def first_text(self, seconds: float) -> None:
        self._tell(lambda observer: observer.first_text(seconds))

    def closed(self, mode: str, outcome: str, seconds: float, cost: Cost) -> None:
        self._tell(lambda observer: observer.closed(mode, outcome, seconds, cost))
