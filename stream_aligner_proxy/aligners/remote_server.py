"""One server with `/v1/completions`: asked over HTTP, its answer read as it is streamed.

Rules: what fails before the first byte of an answer is `Unanswered` and may be asked again; what
fails after it is a `ReviewError` and may not. Leaving `complete` closes the connection, which is
what makes the server stop. No error or log line holds a key or an address.

httpcore2 takes a request off its list only where closing the answer is not interrupted, and what it
shields closing with does not hold against asyncio's own `cancel`. So answers are closed by `_close`
alone, and read in a way that does not close them at their end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any

import httpx2
import orjson

from stream_aligner_proxy.aligners.remote_wire import (
    Abilities,
    Piece,
    Refused,
    read_piece,
    refusal_of,
)
from stream_aligner_proxy.core.errors import ReviewError, UpstreamGarbled
from stream_aligner_proxy.core.sse import SseDecoder

CONNECT_SECONDS = 5.0
# A server that drops idle connections after 5 s (uvicorn's default) must not win the race.
_KEEPALIVE_SECONDS = 4.0
_DRAIN_SECONDS = 0.05
_MAX_BODY_BYTES = 4 * 1024 * 1024
_AGAIN = frozenset((429, 502, 503, 504))
_NONE: Mapping[str, str] = MappingProxyType({})


class Unanswered(ReviewError):
    """No byte of an answer came. `lost`: not even a refusal, so the server may be down. `after`:
    the seconds it asked to be left alone for."""

    def __init__(self, message: str, *, lost: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.lost = lost
        self.after = after


class BrokeOff(ReviewError):
    """An answer had begun, and did not come to its end."""

    def __init__(self) -> None:
        super().__init__("the aligner's server broke off in the middle")


def new_client(connections: int) -> httpx2.AsyncClient:
    """The one pool of connections of an aligner. Deadlines of reading are the caller's."""
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(connect=CONNECT_SECONDS, read=None, write=None, pool=None),
        limits=httpx2.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        ),
        trust_env=False,
        headers={"accept-encoding": "identity", "user-agent": "stream-aligner-proxy"},
    )


class Server:
    """One server, and what is known of it.

    `base` includes `/v1`. `label` names it in logs and errors. `running`: requests in flight. `up`:
    it answered when it was last asked. `rests_until`: loop time before which it asked for no more.
    `model`, `window` (tokens, None where it does not say) and `abilities` are known once it has
    been introduced (see `remote_probe`).
    """

    def __init__(
        self, client: httpx2.AsyncClient, base: str, label: str, api_key: str | None = None
    ) -> None:
        self._client = client
        self._base = base.rstrip("/")
        self._key = api_key
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self.label = label
        self.address = self._base
        self.running = 0
        self.up = False
        self.rests_until = 0.0
        self.model = ""
        self.window: int | None = None
        self.abilities: Abilities | None = None

    def __repr__(self) -> str:
        return f"Server({self.label})"

    async def models(self) -> list[dict[str, Any]]:
        """The data of `/models`. Raises `Unanswered`, `Refused` and `ReviewError`."""
        request = self._client.build_request("GET", f"{self._base}/models", headers=self._headers)
        response = await self._send(request)
        try:
            content = await _read_all(_bytes(response))
        finally:
            await _close(response)
        if response.status_code != 200:
            refusal = refusal_of(response.status_code, content)
            refusal.hide(self._key)
            raise refusal
        try:
            return [dict(model) for model in orjson.loads(content)["data"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ReviewError("the aligner's server sent no list of models") from error

    async def alive(self) -> None:
        """Raise `ReviewError` unless it answers; a refusal of its own is an answer."""
        try:
            await self.models()
        except Refused as refusal:
            if refusal.http is None or refusal.http >= 500:
                raise

    @asynccontextmanager
    async def complete(
        self, body: Mapping[str, Any], headers: Mapping[str, str] = _NONE
    ) -> AsyncIterator["Pieces"]:
        """Ask; `headers` go along. Entering raises `Unanswered` where it may be asked elsewhere,
        else `Refused` or `ReviewError`; leaving early cuts the connection."""
        request = self._client.build_request(
            "POST",
            f"{self._base}/completions",
            content=orjson.dumps(body),
            headers={**headers, **self._headers},
        )
        self.running += 1
        response: httpx2.Response | None = None
        try:
            response = await self._send(request)
            pieces = Pieces(response)
            await pieces.begin()
            yield pieces
            await pieces.drain()
        except Refused as refusal:
            refusal.hide(self._key)
            raise
        finally:
            self.running -= 1
            if response is not None:
                await _close(response)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _lost(error) from error


class Pieces:
    """The pieces of one answer, in order, to its end."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._bytes = _bytes(response)
        self._decoder = SseDecoder()
        self._ready: list[Piece] = []
        self._over = False
        self._finished = False

    async def begin(self) -> None:
        """Wait for the first piece."""
        response = self._response
        status = response.status_code
        if status != 200:
            refusal = refusal_of(status, await _read_all(self._bytes))
            raise _unanswered(refusal, response) or refusal
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            content = await _read_all(self._bytes)
            self._over = True
            if (piece := read_piece(content)) is not None:
                self._ready.append(piece)
            return
        try:
            await self._more(first=True)
            while not self._ready and not self._over:
                await self._more()
        except Refused as refusal:
            # Some servers refuse inside a 200.
            raise _unanswered(refusal, response) or refusal from None

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> Piece:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            await self._more()
        piece = self._ready.pop(0)
        self._finished = self._finished or piece.finish is not None
        return piece

    async def drain(self) -> None:
        """Read what little may follow the last piece, so that the connection can be used again.

        Where the answer was left before that, there is nothing little about it: do nothing."""
        if not self._finished:
            return
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for _ in self._bytes:
                    pass
        except (TimeoutError, httpx2.HTTPError, httpx2.StreamError):
            return  # then the connection is closed instead

    async def _more(self, *, first: bool = False) -> None:
        try:
            data = await anext(self._bytes, b"")
        except httpx2.HTTPError as error:
            if first:
                raise _lost(error) from error
            raise BrokeOff() from error
        if first and not data:
            raise Unanswered("the aligner's server closed without an answer", lost=True)
        try:
            self._take(self._decoder.feed(data) if data else self._decoder.flush())
        except UpstreamGarbled as error:
            raise ReviewError("the aligner's server sent what is no completion") from error
        self._over = self._over or not data

    def _take(self, events: list[Any]) -> None:
        for event in events:
            if event.data.strip() == b"[DONE]":
                self._over = True
            elif (piece := read_piece(event.data)) is not None:
                self._ready.append(piece)


def _lost(error: httpx2.HTTPError) -> Unanswered:
    return Unanswered(f"the aligner's server cannot be reached ({type(error).__name__})", lost=True)


def _unanswered(refusal: Refused, response: httpx2.Response) -> Unanswered | None:
    if refusal.http not in _AGAIN:
        return None
    after = _seconds(response.headers.get("retry-after"))
    return Unanswered(f"the aligner's server is not available ({refusal.http})", after=after)


def _seconds(value: str | None) -> float | None:
    """A `Retry-After` header: seconds, or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _bytes(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The body as it comes. Unlike `aiter_raw` it leaves the response open at the end."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    return aiter(response.stream)


async def _close(response: httpx2.Response) -> None:
    """Whoever is cancelled meanwhile still waits: it takes a turn or two of the loop, no more."""
    closing = asyncio.ensure_future(response.aclose())
    cancelled: asyncio.CancelledError | None = None
    while not closing.done():
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _read_all(body: AsyncIterator[bytes]) -> bytes:
    content = bytearray()
    try:
        async for data in body:
            content += data
            if len(content) > _MAX_BODY_BYTES:
                raise ReviewError("the aligner's server sent too long an answer")
    except httpx2.HTTPError as error:
        if content:
            raise BrokeOff() from error
        raise _lost(error) from error
    return bytes(content)
