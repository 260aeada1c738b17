"""Mode `off`: the upstream's answer passes through as it came, a read at a time."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.api.response import EVENT_STREAM_HEADERS, HttpOut, WatchedResponse
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Cost
from stream_aligner_proxy.core.watching import Observer, Opening, Watch
from stream_aligner_proxy.upstream.routing.lease import Lease

# Inside a JSON string the quotes are escaped, so no reply's text can look like this.
_USAGE = re.compile(rb'"(prompt|completion)_tokens"\s*:\s*(\d{1,12})')


class _Tokens:
    """Tokens of what passes through: as the upstream tells them, or one for each event."""

    __slots__ = ("_events", "_told")

    def __init__(self) -> None:
        self._events = 0
        self._told: dict[bytes, int] = {}

    def add(self, data: bytes) -> None:
        self._events += data.count(b"\n\n")
        if b'_tokens"' in data:
            self._told.update((kind, int(count)) for kind, count in _USAGE.findall(data))

    @property
    def count(self) -> int:
        return sum(self._told.values()) or self._events


@contextmanager
def observed(
    observer: Observer, opening: Opening, clock: Callable[[], float]
) -> Iterator[tuple[Watch, float]]:
    """What passes through unread, as an observer sees it; yields its watch, and when it began."""
    begun = clock()
    ended, error = "cancelled", None
    watch = observer.opened(opening)
    watch.branch_opened(0, 0)
    try:
        yield watch, begun
        ended = "finished"
    except ProxyError as failure:
        ended = error = failure.code or failure.type
        if failure.by_request:
            watch.refused()
        raise
    finally:
        watch.branch_closed(0, error)
        watch.closed(ended, clock() - begun, Cost(branches=1))


class RelayResponse(WatchedResponse):
    """Nothing is read or changed. An upstream that breaks off ends in an error frame here too."""

    def __init__(
        self,
        upstream: Lease,
        plan: Plan,
        *,
        observer: Observer,
        opening: Opening,
        request_id: str,
        headers: Callable[[], Mapping[str, str]],
        count_error: Callable[[ProxyError], None],
        shape: Shape,
        patience: Patience | None = None,
        path: str = "chat/completions",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            request_id=request_id,
            headers=headers,
            count_error=count_error,
            shape=shape,
            patience=patience,
        )
        self._upstream = upstream
        self._plan = plan
        self._path = path
        self._observer = observer
        self._opening = opening
        self._clock = clock

    async def write_to(self, out: HttpOut) -> None:
        with observed(self._observer, self._opening, self._clock) as (watch, begun):
            await self._relay(out, watch, begun)

    async def _relay(self, out: HttpOut, watch: Watch, begun: float) -> None:
        tokens = _Tokens()
        try:
            await self._pass(out, watch, begun, tokens)
        finally:
            watch.relayed(tokens.count)

    async def _pass(self, out: HttpOut, watch: Watch, begun: float, tokens: _Tokens) -> None:
        request = self._plan.request
        async with self._upstream.relay(
            self._plan.relay_body,
            {**request.headers, **watch.context(0)},
            stream=self._plan.stream,
            request_id=request.request_id,
            path=self._path,
        ) as relayed:
            watch.branch_answered(0, self._upstream.name)
            headers = {**told_of(relayed.headers), **self._reply_headers()}
            if relayed.body is not None:
                tokens.add(relayed.body)
                headers["content-length"] = str(len(relayed.body))
                headers.setdefault("content-type", "application/json")
                await out.start(headers)
                await out.end(relayed.body)
                return
            async for frames in relayed.frames:
                tokens.add(frames)
                if not out.started:
                    watch.first_text(self._clock() - begun)
                    await out.start({**headers, **EVENT_STREAM_HEADERS})
                await out.write(frames)
            if not out.started:
                await out.start({**headers, **EVENT_STREAM_HEADERS})
            await out.end()


def told_of(theirs: Mapping[str, str]) -> dict[str, str]:
    """An upstream's headers as the client gets them: the id under another name, for the proxy's
    own has this one."""
    told = {name.lower(): value for name, value in theirs.items()}
    if (upstream_id := told.pop("x-request-id", None)) is not None:
        told["x-upstream-request-id"] = upstream_id
    return told
