"""What is counted of access: refusals, exchanged keys, a store of limits that is away."""

from prometheus_client import CollectorRegistry, Counter

_NAMESPACE = "stream_aligner"


class AccessCounts:
    """Once for each registry. Labels come from fixed sets: never a key, an address or a model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusals = Counter(
            "access_refusals",
            "Requests refused for their key, or for what it has used up.",
            ["reason"],
            namespace=_NAMESPACE,
            registry=registry,
        )
        self._reloads = Counter(
            "keys_reloads",
            "Changes of the keys file, by whether it could be read.",
            ["outcome"],
            namespace=_NAMESPACE,
            registry=registry,
        )
        self._failures = Counter(
            "limiter_failures",
            "Times that the shared store of limits could not be reached.",
            namespace=_NAMESPACE,
            registry=registry,
        )

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def keys_reloaded(self, ok: bool) -> None:
        self._reloads.labels("ok" if ok else "failed").inc()

    def limiter_failed(self) -> None:
        self._failures.inc()
