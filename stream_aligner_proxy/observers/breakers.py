"""Counts what the circuit breakers do. Labels are configured names."""

from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

_NAMESPACE = "stream_aligner"
Kind = Literal["upstream", "aligner"]


class BreakerCounts:
    """The counts of all breakers of a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=_NAMESPACE, registry=registry)
        self.openings = counter(
            "breaker_openings", "How often the breaker of a part opened.", ["kind", "name"]
        )
        self.rejections = counter(
            "breaker_rejections",
            "Requests (upstream) or reviews and replies (aligner) that a breaker sent away.",
            ["kind", "name"],
        )
        self.open = Gauge(
            "breaker_open",
            "1 from a breaker's opening until the part answers again.",
            ["kind", "name"],
            namespace=_NAMESPACE,
            registry=registry,
            multiprocess_mode="livemax",  # one worker that is in trouble is trouble
        )

    def of(self, kind: Kind, name: str) -> "OneBreaker":
        return OneBreaker(self, kind, name)


class OneBreaker:
    """Implements `core.health.HealthWatcher`."""

    def __init__(self, counts: BreakerCounts, kind: Kind, name: str) -> None:
        self._openings = counts.openings.labels(kind, name)
        self._rejections = counts.rejections.labels(kind, name)
        self._open = counts.open.labels(kind, name)

    def opened(self) -> None:
        self._openings.inc()
        self._open.set(1)

    def closed(self) -> None:
        self._open.set(0)

    def rejected(self) -> None:
        self._rejections.inc()
