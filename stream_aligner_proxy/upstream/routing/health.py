"""Which failures speak against an upstream. What follows from them: `core.health`."""

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)


def tells_of_illness(error: UpstreamError) -> bool:
    """Whether `error` speaks against the upstream itself. A 429 may be one client's own limit."""
    if isinstance(error, UpstreamRejected):
        return error.transient and error.status >= 500
    return isinstance(error, UpstreamUnreachable | UpstreamTimeout | UpstreamGarbled)
