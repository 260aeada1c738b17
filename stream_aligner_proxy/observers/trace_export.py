"""Where traces go: OTLP over HTTP, in batches, from a thread of its own."""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from stream_aligner_proxy import __version__

_SECONDS = 5.0
_QUEUE = 8192  # spans; what comes above it is dropped, and the SDK says so in the log


def make_provider(
    endpoint: str,
    *,
    service_name: str,
    sample: float,
    headers: Mapping[str, str] | None = None,
    exporter: SpanExporter | None = None,
) -> TracerProvider:
    """`sample` is the share of the traces that begin here; those of clients go on as they were
    decided. A collector that does not answer holds up nothing but the shutdown, a few seconds."""
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service_name, SERVICE_VERSION: __version__}),
        sampler=ParentBased(TraceIdRatioBased(sample)),
        # The app closes it, after its last reply.
        shutdown_on_exit=False,
    )
    exporter = exporter or OTLPSpanExporter(
        endpoint=f"{endpoint}/v1/traces", headers=dict(headers or {}), timeout=_SECONDS
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=_QUEUE,
            schedule_delay_millis=1000,
            export_timeout_millis=1000 * _SECONDS,
        )
    )
    return provider
