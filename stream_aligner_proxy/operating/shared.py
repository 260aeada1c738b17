"""What outlives a reload: counts, the store of responses, and the parts that stay the same."""

from dataclasses import dataclass

from stream_aligner_proxy.access.counting import AccessCounts
from stream_aligner_proxy.access.limits import Limiter
from stream_aligner_proxy.api.admission import Admission
from stream_aligner_proxy.api.response_store import ResponseStore
from stream_aligner_proxy.api.service import Loaded
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.observers.audit_counts import audit_counts
from stream_aligner_proxy.observers.breakers import BreakerCounts
from stream_aligner_proxy.observers.comparing import ComparisonCounts
from stream_aligner_proxy.observers.lag import Lag
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.observers.replies import Replies
from stream_aligner_proxy.observing import observer_pool
from stream_aligner_proxy.operating.pool import Pool
from stream_aligner_proxy.parts import NamedAligner, start_aligner
from stream_aligner_proxy.settings import ServerSettings
from stream_aligner_proxy.upstream.prober import Prober
from stream_aligner_proxy.upstream.routing.member import Member


@dataclass(frozen=True, slots=True)
class ProbedUpstream:
    member: Member
    prober: Prober


async def _start_upstream(upstream: ProbedUpstream) -> None:
    upstream.prober.start()


async def _close_upstream(upstream: ProbedUpstream) -> None:
    await upstream.prober.close()
    await upstream.member.aclose()


async def _start_aligner(named: NamedAligner) -> None:
    await start_aligner(named.aligner, named.name)


async def _close_aligner(named: NamedAligner) -> None:
    await named.breaker.close()


async def _start_limiter(limiter: Limiter) -> None:
    await limiter.start()


async def _close_limiter(limiter: Limiter) -> None:
    await limiter.close()


class Shared:
    """One for each process."""

    def __init__(self, server: ServerSettings | None = None) -> None:
        server = server or ServerSettings()
        self.server = server
        self.metrics = Metrics()
        self.replies = Replies(content=server.log_content)
        self.lag = Lag()
        self.breakers = BreakerCounts(self.metrics.registry)
        self.comparisons = ComparisonCounts(self.metrics.registry)
        self.admission = Admission(self.metrics.shed)
        self.audit_counts = audit_counts(self.metrics.registry)
        self.observers = observer_pool()
        self.responses = ResponseStore(server.response_store_bytes)
        self.loaded = Loaded()
        self.upstreams: Pool[ProbedUpstream] = Pool(_start_upstream, _close_upstream)
        self.aligners: Pool[NamedAligner] = Pool(_start_aligner, _close_aligner)
        self.access_counts = AccessCounts(self.metrics.registry)
        self.limiters: Pool[Limiter] = Pool(_start_limiter, _close_limiter)

    def count_error(self, error: ProxyError) -> None:
        """A client is told this."""
        self.metrics.error(error)
        self.replies.refused(error)
