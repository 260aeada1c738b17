"""Prometheus metrics of one app, in a registry of its own.

Labels come from fixed sets only: a model's name or an upstream's error code is somebody else's
text, and every new value would be a new time series for ever.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_aligner_proxy.core.errors import ProxyError, RequestError
from stream_aligner_proxy.core.records import Committed, Cost, Finished, Mode
from stream_aligner_proxy.core.watching import Observer, Opening, Watch

_NAMESPACE = "stream_aligner"
_REVIEW_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TEXT_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_REPLY_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


def _codes(kind: type[ProxyError]) -> set[str]:
    own = {kind.code or kind.type}
    return own.union(*(_codes(below) for below in kind.__subclasses__()))


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """One upstream as it is now. `way` and `kind` come from fixed sets: how it is made to continue,
    and what it was seen to do then."""

    name: str
    up: bool
    way: str
    kind: str


class _Upstreams(Collector):
    """Gauges read from the upstreams themselves, so that they cannot lag behind."""

    def __init__(self) -> None:
        self.states: Callable[[], Iterable[UpstreamState]] = tuple

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            f"{_NAMESPACE}_upstream_up", "Whether the upstream is asked first.", labels=["upstream"]
        )
        info = GaugeMetricFamily(
            f"{_NAMESPACE}_continuation_info",
            "How the upstream is made to continue; always 1.",
            labels=["upstream", "way", "class"],
        )
        for state in self.states():
            up.add_metric([state.name], float(state.up))
            info.add_metric([state.name, state.way, state.kind], 1.0)
        yield up
        yield info


class Metrics(Observer):
    """Counts. `registry`: for those who count what replies do not show."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.outcomes = _codes(ProxyError) | {"finished", "cancelled", "internal_error"}
        counter = partial(Counter, namespace=_NAMESPACE, registry=self.registry)
        gauge = partial(Gauge, namespace=_NAMESPACE, registry=self.registry)
        histogram = partial(Histogram, namespace=_NAMESPACE, registry=self.registry)
        self.open_replies = gauge("open_replies", "Replies being written now.", ["mode"])
        self.replies = counter(
            "replies", "Replies that ended, by how they ended.", ["mode", "outcome"]
        )
        self.reply_seconds = histogram(
            "reply_seconds", "Time a reply took.", ["mode"], buckets=_REPLY_SECONDS
        )
        self.first_text = histogram(
            "first_text_seconds",
            "Time until the first text was ready for the client.",
            buckets=_TEXT_SECONDS,
        )
        self.review_seconds = histogram(
            "review_seconds",
            "Time from asking the aligner to its verdict.",
            buckets=_REVIEW_SECONDS,
        )
        self.sentences = counter("sentences", "Committed sentences.", ["verdict"])
        self.unreviewed = counter(
            "unreviewed_characters",
            "Characters delivered although their review failed (fail_open).",
        )
        self.branches = counter("branches", "Upstream runs that were started.")
        self.open_branches = gauge("open_branches", "Upstream runs going on now.")
        self.discarded = counter(
            "discarded_tokens", "Upstream tokens thrown away after a correction."
        )
        self.reviews = counter("reviews", "Reviews that the aligner was asked for.")
        self.in_vain = counter(
            "reviews_in_vain", "Of these, dropped or made of text that was thrown away."
        )
        self.resumes = counter("resumes", "Branches opened because one broke.")
        self.refused = counter(
            "refused_continuations", "Branches that would not continue the text they were given."
        )
        self.skipped = counter(
            "skipped_sentences", "Sentences delivered unreviewed because max_reviews were made."
        )
        self._errors = counter("errors", "Errors told to clients.", ["code"])
        self._retries = counter(
            "retries", "Requests sent to the same upstream once more.", ["upstream", "reason"]
        )
        self._failovers = counter("failovers", "Requests sent to another upstream instead.")
        self._shed = counter(
            "shed_requests", "Requests turned away before they were read.", ["reason"]
        )
        self._reloads = counter(
            "configuration_reloads", "Reloads of the configuration, by how they went.", ["outcome"]
        )
        self._upstreams = _Upstreams()
        self.registry.register(self._upstreams)
        self._observer_failures = counter("observer_failures", "Calls in which an observer raised.")

    def opened(self, opening: Opening) -> Watch:
        return _Counting(self, opening.mode)

    def error(self, error: ProxyError) -> None:
        """Count an error that a client was told."""
        # Our own codes only: an upstream may make up any number of them.
        ours = error if isinstance(error, RequestError) else type(error)
        self._errors.labels(ours.code or ours.type).inc()

    def observer_failed(self) -> None:
        self._observer_failures.inc()

    def shed(self, reason: str) -> None:
        """A request was turned away; `reason` is a word of `Admission`'s."""
        self._shed.labels(reason).inc()

    def reloaded(self, *, ok: bool) -> None:
        self._reloads.labels("ok" if ok else "failed").inc()

    def retried(self, upstream: str, reason: str) -> None:
        self._retries.labels(upstream, reason).inc()

    def failed_over(self) -> None:
        self._failovers.inc()

    def watch(self, states: Callable[[], Iterable[UpstreamState]]) -> None:
        """Tell of upstreams what `states` says whenever the metrics are asked for."""
        self._upstreams.states = states

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Counting(Watch):
    """Counts one reply."""

    __slots__ = ("_metrics", "_mode")

    def __init__(self, metrics: Metrics, mode: Mode) -> None:
        self._metrics = metrics
        self._mode = str(mode)
        metrics.open_replies.labels(self._mode).inc()

    def branch_opened(self, branch: int, prefix_chars: int) -> None:
        self._metrics.branches.inc()
        self._metrics.open_branches.inc()

    def branch_closed(self, branch: int, error: str | None = None) -> None:
        self._metrics.open_branches.dec()

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        metrics = self._metrics
        metrics.sentences.labels(unit.outcome).inc()
        if unit.outcome == "unreviewed":
            metrics.unreviewed.inc(len(unit.text))
        if review_seconds is not None:
            metrics.review_seconds.observe(review_seconds)

    def first_text(self, seconds: float) -> None:
        self._metrics.first_text.observe(seconds)

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        metrics, mode = self._metrics, self._mode
        metrics.open_replies.labels(mode).dec()
        known = outcome if outcome in metrics.outcomes else "upstream_rejected"
        metrics.replies.labels(mode, known).inc()
        metrics.reply_seconds.labels(mode).observe(seconds)
        metrics.discarded.inc(cost.discarded_tokens)
        metrics.reviews.inc(cost.reviews)
        metrics.in_vain.inc(cost.reviews_in_vain)
        metrics.skipped.inc(cost.skipped)
        metrics.resumes.inc(cost.resumes)
        metrics.refused.inc(cost.refused_continuations)
