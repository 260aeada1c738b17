"""What the routes work with: put together once by the composition root."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.api.plan import SCOPE_OF, Rules
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.ports import Aligner, Observer
from stream_aligner_proxy.core.records import Mode, Policy


@dataclass(slots=True)
class Service:
    """The parts of a running proxy. `ready` is set when the aligner has been loaded."""

    directory: Directory
    aligner: Aligner
    rules: Rules
    policy: Callable[[Mode, float], Policy]
    observers: Sequence[Observer]
    count_error: Callable[[ProxyError], None]
    render_metrics: Callable[[], tuple[bytes, str]]
    max_body_bytes: int
    page: bool = True
    examples: tuple[str, ...] = ()
    ready: bool = False

    @property
    def aligner_state(self) -> str:
        """`loading`, `ok`, or `failed`: it was ready once and will not be again."""
        if not self.ready:
            return "loading"
        return "ok" if self.aligner.ready else "failed"

    def modes(self) -> list[Mode]:
        """The modes that a request may choose and the aligner can work in."""
        scopes = self.aligner.scopes
        return [
            mode
            for mode in Mode
            if self.rules.allows(mode) and (mode is Mode.OFF or SCOPE_OF[mode] in scopes)
        ]
