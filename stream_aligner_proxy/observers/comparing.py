"""Counts what a new aligner does beside the one at work. Labels are configured names."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram

from stream_aligner_proxy.core.comparing import Comparison, Judged, Pair, Side, Skipped

_NAMESPACE = "stream_aligner"
_PAIR = ("current", "candidate")
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIMILARITY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class ComparisonCounts:
    """Implements `core.comparing.ComparisonWatcher`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=_NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=_NAMESPACE, registry=registry)
        self._reviews = counter(
            "candidate_reviews",
            "Reviews of a route with a candidate, by who made them and what came of them.",
            [*_PAIR, "side", "verdict"],
        )
        self._seconds = histogram(
            "candidate_review_seconds",
            "Time of these reviews.",
            [*_PAIR, "side"],
            buckets=_SECONDS,
        )
        self._ends = counter(
            "candidate_ends", "Verdicts that end the reply, by whose they are.", [*_PAIR, "by"]
        )
        self._comparisons = counter(
            "candidate_comparisons",
            "Sentences that both reviewed, by how far they agree.",
            [*_PAIR, "agreement"],
        )
        self._similarity = histogram(
            "candidate_similarity",
            "How alike the two texts are where at least one aligner changed the sentence.",
            [*_PAIR],
            buckets=_SIMILARITY,
        )
        self._skipped = counter(
            "candidate_skipped",
            "Sentences (shadow) or replies (canary) that the candidate did not get.",
            [*_PAIR, "reason"],
        )

    def judged(self, pair: Pair, side: Side, review: Judged) -> None:
        self._count(pair, side, review)
        if review.end:
            self._ends.labels(pair.current, pair.candidate, side).inc()

    def compared(self, pair: Pair, comparison: Comparison) -> None:
        names = (pair.current, pair.candidate)
        self._count(pair, "current", comparison.current)
        self._count(pair, "candidate", comparison.candidate)
        self._comparisons.labels(*names, comparison.agreement).inc()
        if comparison.similarity is not None:
            self._similarity.labels(*names).observe(comparison.similarity)
        if comparison.ends is not None:
            self._ends.labels(*names, comparison.ends).inc()

    def skipped(self, pair: Pair, reason: Skipped) -> None:
        self._skipped.labels(pair.current, pair.candidate, reason).inc()

    def _count(self, pair: Pair, side: Side, review: Judged) -> None:
        verdict = "failed" if review.text is None else "replace" if review.changed else "keep"
        names = (pair.current, pair.candidate, side)
        self._reviews.labels(*names, verdict).inc()
        self._seconds.labels(*names).observe(review.seconds)
