"""What became of the audit log's records, as metrics."""

from prometheus_client import CollectorRegistry, Counter

from stream_aligner_proxy.observers.audit_files import Counts

_NAMESPACE = "stream_aligner"


def audit_counts(registry: CollectorRegistry) -> Counts:
    """Make them once for each registry."""
    records = Counter("audit_records", "Replies written to the audit log.", namespace=_NAMESPACE,
                      registry=registry)  # fmt: skip
    size = Counter("audit_bytes", "Bytes written to the audit log.", namespace=_NAMESPACE,
                   registry=registry)  # fmt: skip
    dropped = Counter(
        "audit_dropped",
        "Replies that should have been in the audit log, by why they are not.",
        ["reason"],
        namespace=_NAMESPACE,
        registry=registry,
    )
    withheld = Counter(
        "audit_withheld_texts",
        "Texts in whose place the audit log has a mark, since redaction was not done in time.",
        namespace=_NAMESPACE,
        registry=registry,
    )
    for reason in ("queue", "disk", "redaction"):
        dropped.labels(reason)

    def written(length: int) -> None:
        records.inc()
        size.inc(length)

    return Counts(written, lambda reason: dropped.labels(reason).inc(), withheld.inc)
