"""Every Prometheus instrument of the proxy: names, help, labels, buckets. docs/metrics.md lists
them, and a test compares the two.

Labels come from fixed sets or from the configuration only: a model's name or an upstream's error
code is somebody else's text, and every new value would be a new time series for ever.

With several workers the library keeps the values in files (`PROMETHEUS_MULTIPROC_DIR`), and
whichever worker is asked adds up all: hence `multiprocess_mode`. What lives only as long as its
worker is `live…`.
"""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

NAMESPACE = "stream_aligner"

_REVIEW_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TEXT_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_SENTENCE_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_REPLY_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_DISTANCES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1)

# One more series for each of ours, which only tells when it was made; several workers have none.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Instruments:
    """The instruments of one app, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry, multiprocess_mode="livesum")
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)

        # --- replies -------------------------------------------------------------------------
        self.started = counter(
            "started_replies",
            "Replies that began, by what was asked for.",
            ["route", "path", "delivery"],
        )
        self.keys = counter("key_replies", "Replies that began, by the client's key.", ["key"])
        self.open_replies = gauge("open_replies", "Replies being written now.", ["mode"])
        self.open_streams = gauge("open_streams", "Of these, those that are streamed.")
        self.replies = counter(
            "replies", "Replies that ended, by how they ended.", ["mode", "outcome"]
        )
        self.cancellations = counter(
            "cancellations",
            "Replies whose client left, or which a stop cut short, by whether text was there.",
            ["when"],
        )
        self.reply_seconds = histogram(
            "reply_seconds", "Time a reply took.", ["mode"], buckets=_REPLY_SECONDS
        )
        self.first_text = histogram(
            "first_text_seconds",
            "Time until the first text was ready for the client.",
            buckets=_TEXT_SECONDS,
        )

        # --- sentences -----------------------------------------------------------------------
        self.sentences = counter("sentences", "Committed sentences.", ["verdict"])
        self.sentence_seconds = histogram(
            "sentence_seconds",
            "Time from a sentence's last character to its delivery.",
            ["verdict"],
            buckets=_SENTENCE_SECONDS,
        )
        self.judged = counter("judged_sentences", "Sentences committed by a verdict.", ["route"])
        self.corrections = counter("corrections", "Of these, those rewritten.", ["route"])
        self.distance = histogram(
            "correction_edit_distance",
            "How much of a rewritten sentence was changed, 0 to 1; up to 500 characters.",
            buckets=_DISTANCES,
        )
        self.unreviewed = counter(
            "unreviewed_characters",
            "Characters delivered although their review failed (fail_open).",
        )
        self.skipped = counter(
            "skipped_sentences", "Sentences delivered unreviewed because max_reviews were made."
        )

        # --- the aligner ---------------------------------------------------------------------
        self.review_seconds = histogram(
            "review_seconds",
            "Time from asking the aligner to its verdict.",
            buckets=_REVIEW_SECONDS,
        )
        self.reviews = counter("reviews", "Reviews that the aligner was asked for.")
        self.in_vain = counter(
            "reviews_in_vain", "Of these, dropped or made of text that was thrown away."
        )
        self.failed_reviews = counter("failed_reviews", "Reviews that failed.", ["aligner"])
        self.open_reviews = gauge(
            "open_reviews", "Reviews asked for and not answered yet.", ["aligner"]
        )
        self.queue = gauge(
            "aligner_queue", "Of these, those that the aligner has not taken up yet.", ["aligner"]
        )
        self.queue_seconds = histogram(
            "aligner_queue_seconds",
            "Time until the aligner took a review up.",
            ["aligner"],
            buckets=_REVIEW_SECONDS,
        )
        self.aligner_tokens = counter("aligner_tokens", "Tokens of the aligner.", ["kind"])

        # --- upstreams -----------------------------------------------------------------------
        self.branches = counter(
            "branches",
            "Upstream runs, by why they were started; told at the reply's end.",
            ["reason"],
        )
        self.open_branches = gauge("open_branches", "Upstream runs going on now.")
        self.broken_branches = counter("broken_branches", "Upstream runs that broke.", ["code"])
        self.resumes = counter("resumes", "Branches opened because one broke.")
        self.refused = counter(
            "refused_continuations", "Branches that would not continue the text they were given."
        )
        self.first_byte = histogram(
            "upstream_first_byte_seconds",
            "Time from asking for a branch to the first that the upstream writes.",
            ["upstream"],
            buckets=_TEXT_SECONDS,
        )
        self.retries = counter(
            "retries", "Requests sent to the same upstream once more.", ["upstream", "reason"]
        )
        self.failovers = counter("failovers", "Requests sent to another upstream instead.")
        self.stalls = counter("stalls", "Times an upstream was not read for a while.", ["by"])
        self.stalled_seconds = counter(
            "stalled_seconds", "For so long, because of a full line or a slow client.", ["by"]
        )

        # --- tokens --------------------------------------------------------------------------
        self.delivered = counter(
            "delivered_tokens", "Completion tokens of finished replies, as told to clients."
        )
        self.discarded = counter(
            "discarded_tokens", "Upstream tokens thrown away after a correction."
        )
        self.resent = counter(
            "resent_prefix_tokens", "Tokens sent to upstreams again, to continue from them."
        )

        # --- the process ---------------------------------------------------------------------
        self.errors = counter("errors", "Errors told to clients.", ["code"])
        self.shed = counter(
            "shed_requests", "Requests turned away before they were read.", ["reason"]
        )
        for reason in ("open", "bytes", "memory", "loading", "draining"):
            # Born with the first burst, it would show no increase of it.
            self.shed.labels(reason)
        self.reloads = counter(
            "configuration_reloads", "Reloads of the configuration, by how they went.", ["outcome"]
        )
        self.observer_failures = counter("observer_failures", "Calls in which an observer raised.")
        self.spans = counter(
            "trace_spans_dropped", "Spans of traces that the collector did not get.", ["reason"]
        )
        for reason in ("queue", "export"):
            self.spans.labels(reason)
        self.lag = histogram(
            "event_loop_lag_seconds",
            "How late the event loop was, looked at four times a second.",
            buckets=_LAG_SECONDS,
        )
        self.workers = gauge("workers", "Processes that serve.")
        self.ready = gauge(
            "ready",
            "Whether all workers are ready for requests.",
            multiprocess_mode="livemin",
        )
