"""One HTTP exchange with an upstream: send, read with deadlines, close. The only user of sockets.

Rule: every failure of the transport leaves here as an `UpstreamError`, and closing is complete when
`close` returns, also where the task is being cancelled.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_DRAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds. `first_byte` counts from sending to the first byte of the body."""

    connect: float = 5.0
    first_byte: float = 120.0
    between_chunks: float = 60.0
    total: float = 1800.0
    ping: float = 3.0

    def for_httpx(self) -> httpx2.Timeout:
        """Reading is timed here, not by httpx2: its limit cannot change between first and next."""
        return httpx2.Timeout(
            connect=self.connect, read=None, write=self.between_chunks, pool=self.connect
        )


class Exchange:
    """One request and its answer, read by one task."""

    def __init__(
        self, client: httpx2.AsyncClient, request: httpx2.Request, timeouts: Timeouts, upstream: str
    ) -> None:
        self._client = client
        self._request = request
        self._timeouts = timeouts
        self._who = f"upstream {upstream!r}"
        self._response: httpx2.Response | None = None
        self._bytes: AsyncIterator[bytes] | None = None
        self._end = self._first = 0.0
        self._answered = False

    @property
    def status(self) -> int | None:
        """The answer's status, None before there is one."""
        return None if self._response is None else self._response.status_code

    async def send(self) -> httpx2.Response:
        """Send the request; the answer's headers, whatever its status."""
        now = asyncio.get_running_loop().time()
        self._end = now + self._timeouts.total
        self._first = min(now + self._timeouts.first_byte, self._end)
        try:
            async with asyncio.timeout_at(self._first):
                self._response = await self._client.send(self._request, stream=True)
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self._who} did not answer in time") from error
        except httpx2.HTTPError as error:
            raise self._failure(error) from error
        encoded = self._response.headers.get("content-encoding", "identity") != "identity"
        self._bytes = self._response.aiter_bytes() if encoded else self._response.aiter_raw()
        return self._response

    async def read(self, at_most: float | None = None) -> bytes | None:
        """The next bytes of the body, None at its end; waits `at_most` seconds if that is less."""
        assert self._bytes is not None, "read before send"
        deadline = self._first
        if self._answered or at_most is not None:
            now = asyncio.get_running_loop().time()
            wait = self._timeouts.between_chunks if at_most is None else at_most
            deadline = min(now + wait, self._end)
        try:
            async with asyncio.timeout_at(deadline):
                data = await anext(self._bytes, None)
        except TimeoutError as error:
            raise UpstreamTimeout(f"{self._who} stopped sending") from error
        except httpx2.HTTPError as error:
            raise self._failure(error) from error
        self._answered = True
        return data

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
        try:
            while await self.read(_DRAIN_SECONDS) is not None:
                pass
        except UpstreamError:
            return  # then the connection is closed instead

    async def close(self) -> None:
        """Give the connection back if the answer was read to its end, else cut it."""
        if self._response is None:
            return  # httpx2 closes what it was opening when `send` is cancelled
        # httpcore2 shields this from cancellation.
        await self._response.aclose()

    def _failure(self, error: httpx2.HTTPError) -> UpstreamError:
        match error:
            case httpx2.PoolTimeout():
                return UpstreamError(
                    f"all connections to {self._who} are in use", status=503, code="overloaded"
                )
            case httpx2.TimeoutException():
                return UpstreamTimeout(f"{self._who} could not be reached in time")
            case httpx2.ConnectError():
                return UpstreamUnreachable(f"{self._who} cannot be reached")
            case httpx2.RemoteProtocolError() | httpx2.DecodingError() if (
                self._response is not None
            ):
                return UpstreamGarbled(f"{self._who} broke off in the middle of its answer")
            case httpx2.NetworkError() if self._response is not None:
                return UpstreamUnreachable(f"the connection to {self._who} was lost")
            case httpx2.NetworkError() | httpx2.RemoteProtocolError():
                return UpstreamUnreachable(f"{self._who} closed the connection without answering")
            case _:
                return UpstreamError(f"the request to {self._who} failed ({type(error).__name__})")
