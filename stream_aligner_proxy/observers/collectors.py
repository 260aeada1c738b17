"""What is read when the metrics are asked for, rather than counted: upstreams, build, process."""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream_aligner_proxy import __version__
from stream_aligner_proxy.observers.instruments import NAMESPACE


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """One upstream as it is now. `way` and `kind` come from fixed sets: how it is made to continue,
    and what it was seen to do then."""

    name: str
    up: bool
    way: str
    kind: str


class States(Collector):
    """Gauges read from the upstreams themselves, so that they cannot lag behind. With several
    workers they are those of the one that is asked."""

    def __init__(self) -> None:
        self.upstreams: Callable[[], Iterable[UpstreamState]] = tuple

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            f"{NAMESPACE}_upstream_up", "Whether the upstream is asked first.", labels=["upstream"]
        )
        info = GaugeMetricFamily(
            f"{NAMESPACE}_continuation_info",
            "How the upstream is made to continue; always 1.",
            labels=["upstream", "way", "class"],
        )
        for state in self.upstreams():
            up.add_metric([state.name], float(state.up))
            info.add_metric([state.name, state.way, state.kind], 1.0)
        build = GaugeMetricFamily(
            f"{NAMESPACE}_build_info", "What runs here; always 1.", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1.0)
        yield from (up, info, build)


class Processes(Collector):
    """`process_…` of all live workers together: those that have a file of live gauges in `folder`.
    Times of start are the earliest; memory is a sum, in which shared pages count several times."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Sequence[Metric]:
        together: dict[str, Metric] = {}
        for file in sorted(self._folder.glob("gauge_livesum_*.db")):
            pid = file.stem.removeprefix("gauge_livesum_")
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                known = together.setdefault(metric.name, metric)
                if known is not metric:
                    _add(known, metric)
        return list(together.values())


def _add(known: Metric, other: Metric) -> None:
    join = min if known.name == "process_start_time_seconds" else float.__add__
    known.samples = [
        one._replace(value=join(float(one.value), float(two.value)))
        for one, two in zip(known.samples, other.samples, strict=True)
    ]
