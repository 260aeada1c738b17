"""Prometheus metrics of one app, in a registry of its own; with several workers, of all of them.

`instruments` says what there is; `counting` counts replies; here is what else tells of itself.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from stream_aligner_proxy.core.errors import ProxyError, RequestError
from stream_aligner_proxy.core.watching import Observer, Opening, Watch
from stream_aligner_proxy.observers.collectors import Processes, States, UpstreamState
from stream_aligner_proxy.observers.counting import Children, Counting
from stream_aligner_proxy.observers.instruments import Instruments

__all__ = ["Metrics", "UpstreamState"]

# The library's own name: where it was set when that was imported, values are kept there.
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# The APIs; what is passed on to an upstream unread is one word.
_PATHS = frozenset(("chat/completions", "completions", "messages", "responses", "align"))


def _codes(kind: type[ProxyError]) -> set[str]:
    own = {kind.code or kind.type}
    return own.union(*(_codes(below) for below in kind.__subclasses__()))


class Metrics(Observer):
    """Counts. `registry` takes more instruments, for those who count what replies do not show;
    `collect_from` takes collectors. One for each process where there are several workers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.outcomes = _codes(ProxyError) | {"finished", "cancelled", "internal_error"}
        self.of = Instruments(self.registry)
        self._children: dict[tuple[str, str, str], Children] = {}
        self._states = States()
        self._queues: Callable[[], Iterable[tuple[str, int]]] = tuple
        self._queued: set[str] = set()
        self._ready: Callable[[], bool] = lambda: False
        folder = os.environ.get(_FOLDER)
        self._shown = self.registry if folder is None else CollectorRegistry()
        if folder is None:
            ProcessCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        else:
            MultiProcessCollector(self._shown, folder)  # type: ignore[no-untyped-call]
            self.collect_from(Processes(Path(folder)))
        PlatformCollector(registry=self._shown)
        self.collect_from(self._states)
        self.of.workers.set(1)
        for outcome in ("ok", "failed"):
            # A series that begins with its first failure shows no increase, and no alert fires.
            self.of.reloads.labels(outcome)

    def collect_from(self, collector: Collector) -> None:
        """Show what `collector` finds whenever the metrics are asked for."""
        self._shown.register(collector)

    def opened(self, opening: Opening) -> Watch:
        path = opening.path if opening.path in _PATHS else "other"
        delivery = "stream" if opening.streamed else "whole"
        self.of.started.labels(opening.route, path, delivery).inc()
        if opening.key is not None:
            self.of.keys.labels(opening.key).inc()
        kind = (str(opening.mode), opening.route, opening.aligner)
        children = self._children.get(kind)
        if children is None:
            children = self._children[kind] = Children(self.of, *kind)
        return Counting(self.of, children, opening, self._known)

    def _known(self, outcome: str) -> str:
        return outcome if outcome in self.outcomes else "upstream_rejected"

    def error(self, error: ProxyError) -> None:
        """Count an error that a client was told."""
        # Our own codes only: an upstream may make up any number of them.
        ours = error if isinstance(error, RequestError) else type(error)
        self.of.errors.labels(ours.code or ours.type).inc()

    def observer_failed(self) -> None:
        self.of.observer_failures.inc()

    def shed(self, reason: str) -> None:
        """A request was turned away; `reason` is a word of `Admission`'s."""
        self.of.shed.labels(reason).inc()

    def reloaded(self, *, ok: bool) -> None:
        self.of.reloads.labels("ok" if ok else "failed").inc()

    def spans_dropped(self, reason: str, spans: int) -> None:
        """The collector of traces did not get so many. Called from any thread."""
        self.of.spans.labels(reason).inc(spans)

    def retried(self, upstream: str, reason: str) -> None:
        self.of.retries.labels(upstream, reason).inc()

    def failed_over(self) -> None:
        self.of.failovers.inc()

    def waited(self, aligner: str) -> Callable[[float], None]:
        """To be told how long a review waited until the aligner of that name took it up."""
        return self.of.queue_seconds.labels(aligner).observe

    def lagged(self, seconds: float) -> None:
        """The event loop was so late."""
        self.of.lag.observe(seconds)

    def watch(
        self,
        states: Callable[[], Iterable[UpstreamState]],
        *,
        ready: Callable[[], bool] = lambda: True,
        queues: Callable[[], Iterable[tuple[str, int]]] = tuple,
    ) -> None:
        """Tell what these say whenever the metrics are asked for: the upstreams, whether requests
        are served, and how many reviews wait for each aligner."""
        self._states.upstreams = states
        self._ready, self._queues = ready, queues

    def refresh(self) -> None:
        """Take down what is not told but has to be asked. Other workers show it as it was then."""
        self.of.ready.set(float(self._ready()))
        waiting = dict(self._queues())
        for gone in self._queued - waiting.keys():  # by a reload
            self.of.queue.labels(gone).set(0)
        for aligner, number in waiting.items():
            self.of.queue.labels(aligner).set(number)
        self._queued = set(waiting)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        self.refresh()
        return generate_latest(self._shown), CONTENT_TYPE_LATEST
