"""One HTTP exchange with an upstream: send, read with deadlines, close. The only user of sockets.

Rules: every failure of the transport leaves here as an `UpstreamError`; what arrived before it is
handed out first; `close` needs no waiting, so a cancelled task can always do it.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp
from yarl import URL

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from stream_aligner_proxy.upstream.causes import why
from stream_aligner_proxy.upstream.http2 import Connection, Http2, Stream

_DRAIN_SECONDS = 0.05
# A server that drops idle connections after 5 s (uvicorn's default) must not win the race.
_KEEPALIVE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds. `first_byte` counts from sending to the first byte of the body."""

    connect: float = 5.0
    first_byte: float = 120.0
    between_chunks: float = 60.0
    total: float = 1800.0
    ping: float = 3.0


class Answer(Protocol):
    """What has been answered: aiohttp's response, or a stream of HTTP/2."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def close(self) -> None: ...


# Events must arrive one by one: compression would hold them back.
_HEADERS = {"accept-encoding": "identity", "user-agent": "stream-aligner-proxy"}


class Connections:
    """The connections to one server, kept open between exchanges. Used from one event loop.

    HTTP/2 where the server offers it over TLS and `http2` allows it. Else aiohttp's pool with a
    limit of our own, which tells a full pool from a slow connection. `ca_file`: whose certificates
    are trusted; the system's where it is None. Raises `OSError` for it.
    """

    def __init__(self, limit: int, *, http2: bool = True, ca_file: Path | None = None) -> None:
        self.places = asyncio.Semaphore(limit)
        self._ca_file = ca_file
        self._trust = ssl.create_default_context(cafile=ca_file) if ca_file else None
        self._session: aiohttp.ClientSession | None = None
        self._http2: Http2 | None = None
        self._may_http2 = http2

    @property
    def session(self) -> aiohttp.ClientSession:
        """Made at first use: it belongs to the event loop that runs then."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=_KEEPALIVE_SECONDS, ssl=self._trust or True
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
            )
        return self._session

    async def http2(self, url: URL) -> Connection | None:
        """A connection with HTTP/2, None where HTTP/1.1 is spoken. Raises `OSError`."""
        if not self._may_http2 or url.scheme != "https":
            return None
        if self._http2 is None:
            self._http2 = Http2(ssl.create_default_context(cafile=self._ca_file))
        return await self._http2.connection(url)

    async def close(self) -> None:
        if self._http2 is not None:
            self._http2.close()
        if self._session is not None:
            await self._session.close()


class _Late(Exception):
    """Set on a body whose next bytes did not come in time."""


def _ignore(lost: "asyncio.Future[None]") -> None:
    if not lost.cancelled():
        lost.exception()


class Exchange:
    """One request and its answer, read by one task."""

    def __init__(
        self,
        connections: Connections,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        upstream: str,
        content: bytes | None = None,
    ) -> None:
        self._connections = connections
        self._method = method
        self._url = url
        self._headers = headers
        self._timeouts = timeouts
        self._content = content
        self._who = f"upstream {upstream!r}"
        self._response: aiohttp.ClientResponse | Stream | None = None
        self._has_place = False
        self._end = self._first = 0.0
        self._answered = False
        # One timer for all reads, moved only when it fires: most reads are over long before it.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._reading = False
        self._lost: asyncio.Future[None] | None = None

    @property
    def status(self) -> int | None:
        """The answer's status, None before there is one."""
        return None if self._response is None else self._response.status

    async def send(self) -> Answer:
        """Send the request; the answer's headers, whatever its status."""
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._end = now + self._timeouts.total
        self._first = min(now + self._timeouts.first_byte, self._end)
        await self._take_place()
        try:
            async with asyncio.timeout_at(self._first):
                self._response = await self._request()
        except aiohttp.ClientError as error:
            raise self._failure(error) from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self._who} did not answer in time") from error
        self._content = None  # it may be long, and so may the answer take
        self._hear_of_loss(self._response)
        return self._response

    async def _request(self) -> aiohttp.ClientResponse | Stream:
        if connection := await self._http2():
            headers = {**_HEADERS, **self._headers}
            return await connection.request(self._method, self._url, headers, self._content)
        return await self._connections.session.request(
            self._method,
            self._url,
            data=self._content,
            headers=self._headers,
            allow_redirects=False,
            # Reading is timed here: its limit changes between the first and the next.
            timeout=aiohttp.ClientTimeout(connect=self._timeouts.connect),
        )

    async def _http2(self) -> Connection | None:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                return await self._connections.http2(self._url)
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self._who} could not be reached in time") from error
        except OSError as error:
            raise UpstreamUnreachable(f"{self._who} cannot be reached{why(error)}") from error

    def _hear_of_loss(self, response: aiohttp.ClientResponse | Stream) -> None:
        """aiohttp does not tell a body's reader of every way in which a connection can end: bytes
        that are no HTTP close it in silence. So the connection itself is listened to."""
        if isinstance(response, Stream):
            return
        connection = response.connection  # None where all of the answer has come
        if connection is None or connection.protocol is None:
            return
        self._lost = connection.protocol.closed
        if self._lost is not None:
            self._lost.add_done_callback(self._on_loss)

    def _on_loss(self, lost: "asyncio.Future[None]") -> None:
        _ignore(lost)  # it is told by the reader, or below
        assert isinstance(self._response, aiohttp.ClientResponse)
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection has ended"))

    async def _take_place(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await self._connections.places.acquire()
        except TimeoutError as error:
            raise UpstreamError(
                f"all connections to {self._who} are in use", status=503, code="overloaded"
            ) from error
        self._has_place = True

    def hurry(self, seconds: float) -> None:
        """The rest of the body has to come within that time, however often some of it comes."""
        self._end = min(self._end, self._loop.time() + seconds)

    async def read(self) -> bytes | None:
        """The next bytes of the body, None at its end."""
        assert self._response is not None, "read before send"
        content = self._response.content
        deadline = self._first
        if self._answered:
            deadline = self._loop.time() + self._timeouts.between_chunks
        self._watch(min(deadline, self._end))
        self._reading = True
        try:
            data = await content.readany()
        except _Late as error:
            raise UpstreamTimeout(f"{self._who} stopped sending") from error
        except (aiohttp.ClientError, OSError) as error:
            # The reader forgets what it still holds once the connection has failed; a public way
            # to get at it does not exist.
            if rest := content._read_nowait(-1):
                return rest
            raise self._failure(error) from error
        finally:
            self._reading = False
        self._answered = True
        return data or None

    def _watch(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._late)

    def _late(self) -> None:
        self._timer = None
        if not self._reading or self._response is None:
            return  # the next read sets it again
        if self._loop.time() < self._deadline:
            self._watch(self._deadline)
        else:
            self._response.content.set_exception(_Late())

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises `UpstreamGarbled` above `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while (data := await self.read()) is not None:
            parts.append(data)
            size += len(data)
            if size > limit:
                raise UpstreamGarbled(f"{self._who} answered with more than {limit} bytes")
        return b"".join(parts)

    async def read_start(self, limit: int) -> bytes:
        """The body, or at least its first `limit` bytes; the rest is then not read."""
        body = bytearray()
        while len(body) < limit and (data := await self.read()) is not None:
            body += data
        return bytes(body)

    async def drain(self) -> None:
        """Read to the end after the last event, so that the connection can be used again."""
        self.hurry(_DRAIN_SECONDS)
        try:
            while await self.read() is not None:
                pass
        except UpstreamError:
            return  # then the connection is closed instead

    def close(self) -> None:
        """Cut the connection, unless the answer was read to its end: then it has gone back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lost is not None:
            self._lost.remove_done_callback(self._on_loss)
            # The connection may live on in the pool, and how it ends there is nobody's business.
            self._lost.remove_done_callback(_ignore)
            self._lost.add_done_callback(_ignore)
        # Without a response aiohttp closed what it was opening when `send` was left.
        if self._response is not None:
            self._response.close()
        if self._has_place:
            self._has_place = False
            self._connections.places.release()

    def _failure(self, error: Exception) -> UpstreamError:
        match error:
            case aiohttp.ServerTimeoutError():
                return UpstreamTimeout(f"{self._who} could not be reached in time")
            case aiohttp.ClientConnectorError():
                cause = getattr(error, "certificate_error", error.os_error)
                return UpstreamUnreachable(f"{self._who} cannot be reached{why(cause)}")
            case aiohttp.ClientPayloadError() | aiohttp.ClientResponseError() if (
                self._response is not None
            ):
                return UpstreamGarbled(f"{self._who} broke off in the middle of its answer")
            case aiohttp.ClientResponseError():
                return UpstreamGarbled(f"{self._who} did not answer in HTTP")
            case aiohttp.ClientConnectionError() | OSError() if self._response is not None:
                return UpstreamUnreachable(f"the connection to {self._who} was lost")
            case aiohttp.ClientConnectionError() | OSError():
                return UpstreamUnreachable(f"{self._who} closed the connection without answering")
            case _:
                return UpstreamError(f"the request to {self._who} failed ({type(error).__name__})")
