"""Where traces go: OTLP over HTTP, in batches, from a thread of its own.

What is lost is counted: the SDK itself only writes log lines, one for each span or batch.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from stream_aligner_proxy import __version__

_log = logging.getLogger(__name__)

_SECONDS = 5.0
_QUEUE = 8192  # spans; what comes above it is dropped
_TELL_SECONDS = 60.0

Dropped = Callable[[str, int], None]


class _Seldom(logging.Filter):
    """One line of each level a minute: a collector that is away brings three for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[int, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._told.get(record.levelno, -_TELL_SECONDS) < _TELL_SECONDS:
            return False
        self._told[record.levelno] = now
        return True


# By all providers of a process: a reload brings a new one.
_SELDOM = _Seldom()
_EXPORTER = OTLPSpanExporter.__module__  # the name of its logger


class _Counted(SpanExporter):
    """`taken`: spans that were given to the collector, whatever it did with them."""

    def __init__(self, exporter: SpanExporter, dropped: Dropped) -> None:
        self._exporter = exporter
        self._dropped = dropped
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self._dropped("export", len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Bounded(BatchSpanProcessor):
    """Gives the SDK's queue no more than fits: there the oldest would go, untold.

    Spans end on the event loop and are exported in the SDK's thread; each side has a counter of its
    own, so there is no lock."""

    def __init__(self, exporter: SpanExporter, dropped: Dropped, *, queue: int) -> None:
        counted = _Counted(exporter, dropped)
        super().__init__(
            counted,
            max_queue_size=queue,
            max_export_batch_size=min(512, queue),
            schedule_delay_millis=1000,
            export_timeout_millis=1000 * _SECONDS,
        )
        self._counted = counted
        self._dropped = dropped
        self._most = queue
        self._given = 0
        self._told = -_TELL_SECONDS

    def on_end(self, span: ReadableSpan) -> None:
        if not (span.context and span.context.trace_flags.sampled):
            return
        if self._given - self._counted.taken < self._most:
            self._given += 1
            super().on_end(span)
            return
        self._dropped("queue", 1)
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            _log.error("tracing: %d spans wait for the collector; more are dropped", self._most)

    def shutdown(self) -> None:
        super().shutdown()  # type: ignore[no-untyped-call]
        if (left := self._given - self._counted.taken) > 0:
            self._dropped("export", left)


def make_provider(
    endpoint: str,
    *,
    service_name: str,
    sample: float,
    headers: Mapping[str, str] | None = None,
    exporter: SpanExporter | None = None,
    dropped: Dropped = lambda reason, spans: None,
    queue: int = _QUEUE,
) -> TracerProvider:
    """`sample` is the share of the traces that begin here; those of clients go on as they were
    decided. A collector that does not answer holds up nothing but the shutdown, a few seconds.

    `dropped` is told of spans that are lost: `queue`, more than `queue` were waiting; `export`, the
    collector did not take them."""
    logging.getLogger(_EXPORTER).addFilter(_SELDOM)
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: __version__}),
        sampler=ParentBased(TraceIdRatioBased(sample)),
        # The app closes it, after its last reply.
        shutdown_on_exit=False,
    )
    exporter = exporter or OTLPSpanExporter(
        endpoint=f"{endpoint}/v1/traces", headers=dict(headers or {}), timeout=_SECONDS
    )
    provider.add_span_processor(_Bounded(exporter, dropped, queue=queue))
    return provider
