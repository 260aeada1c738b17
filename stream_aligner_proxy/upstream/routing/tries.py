"""Who is asked for one branch, one after another, until one answers. Decides; does nothing."""

from collections.abc import Callable, Iterable

from stream_aligner_proxy.core.errors import UpstreamError
from stream_aligner_proxy.upstream.routing.retrying import (
    asked_for_patience,
    next_target,
    same_target,
)
from stream_aligner_proxy.upstream.routing.table import Target


def admitted(targets: Iterable[Target]) -> list[Target]:
    """Those whose breaker is not open."""
    return [target for target in targets if target.member.health.admits]


class Tries:
    """Begins with the best of `targets`, of which there is one at least; `best` chooses among those
    not tried yet. `always`: also ask those whose breaker is open."""

    def __init__(
        self, targets: list[Target], best: Callable[[list[Target]], Target], *, always: bool
    ) -> None:
        self._untried = targets
        self._best = best
        self._always = always
        self._again = 0  # how often the same one was asked once more
        self._waited = False
        self.target = best(targets)

    def once_more(self, failure: UpstreamError) -> float | None:
        """Seconds until the same target is asked once more; None where it is given up."""
        pause = same_target(failure, self._again, self.target.member.terms.retries)
        if pause is not None:
            self._again += 1
        return pause

    def move_on(self, failure: UpstreamError) -> float:
        """Seconds until `target` is asked, which may be another now. Raises `failure` where nobody
        is left: what the last one said is what the client is told."""
        left = [target for target in self._untried if target is not self.target]
        self._untried = left if self._always else admitted(left)
        if not next_target(failure):
            raise failure
        if self._untried:
            self.target, self._again = self._best(self._untried), 0
            return 0.0
        pause = asked_for_patience(failure)
        if self._waited or pause is None:
            raise failure
        self._waited = True
        return pause
