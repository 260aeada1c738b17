"""A client's connection: uvicorn's, with bounds on what a request's head and body may take.

uvicorn waits for ever for a head, or a body, that comes a byte at a time, and holds any number of
headers. Nothing is added where the server writes; where it reads, a request that comes in one piece
(most do) costs a comparison, and no timer.
"""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.faces.shapes import shape_of
from stream_aligner_proxy.api.response import ABORT
from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.settings import ServerSettings

_log = logging.getLogger(__name__)


class _Phase(IntEnum):
    """What comes next of the client's."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Of a request: bytes of its head (the address, too), headers, and the seconds in which the
    head and the body must have come."""

    max_bytes: int = 64 * 1024
    max_headers: int = 200
    head_seconds: float = 15.0
    body_seconds: float = 120.0

    @classmethod
    def of(cls, server: ServerSettings) -> "HeadLimits":
        return cls(
            server.max_header_bytes, server.max_headers, server.head_seconds, server.body_seconds
        )


class _TooLarge(Exception):
    """Ends the parsing of a head."""


class Connection(HttpToolsProtocol):
    """`limits` are set by `connections`."""

    limits = HeadLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.url = b""
        self._phase = _Phase.NOTHING
        self._head_bytes = 0
        self._head_headers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timed = _Phase.NOTHING  # what the timer is for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn's own timer runs between requests only: who never sends anything stays for ever.
        self._set_timer(_Phase.HEAD, self.limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.HEAD:
            # A line that has no end is told to nobody: its bytes are counted as they come.
            if self._head_bytes > self.limits.max_bytes:
                self._refuse_head()
                return
            self._head_bytes += len(data)
        super().data_received(data)
        if self._phase is not self._timed or self._timer is None:
            self._time()

    def _time(self) -> None:
        """Another part of the request is awaited than the timer is for."""
        match self._phase:
            case _Phase.BODY:
                self._set_timer(_Phase.BODY, self.limits.body_seconds)
            case _Phase.HEAD:
                self._set_timer(_Phase.HEAD, self.limits.head_seconds)
            case _ if self.cycle is None or (self.cycle.response_complete and not self.pipeline):
                # Bytes that begin no request, after which uvicorn has stopped its own timer.
                if self._timed is not _Phase.HEAD or self._timer is None:
                    self._set_timer(_Phase.HEAD, self.limits.head_seconds)
            case _:
                self._stop_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._head_bytes = self._head_headers = 0
        self.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_bytes:
            raise _TooLarge

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_headers += 1
        if self._head_headers > self.limits.max_headers:
            raise _TooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._too_much():
            raise _TooLarge
        super().on_headers_complete()
        self._phase = _Phase.BODY

    def on_message_complete(self) -> None:
        self._phase = _Phase.NOTHING
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called where the parser stopped, also by what was raised above."""
        if self._phase is _Phase.HEAD and self._too_much():
            self._refuse_head()
        else:
            self._cut(RequestError("This is no valid HTTP request.", code="invalid_http"))

    def _too_much(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return self._head_headers > self.limits.max_headers or size > self.limits.max_bytes

    def _refuse_head(self) -> None:
        limits = self.limits
        self._cut(
            RequestError(
                f"The request's head is larger than {limits.max_bytes} bytes or "
                f"{limits.max_headers} headers.",
                status=431,
                code="headers_too_large",
            )
        )

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.pipeline or self.flow.read_paused:
            # It is the proxy that does not read: the time starts anew.
            self._time()
            return
        what = "head" if self._timed is _Phase.HEAD else "body"
        if self._phase is _Phase.NOTHING:  # nothing was begun: there is nobody to tell
            self.transport.close()
            return
        self._cut(
            RequestError(
                f"The request's {what} took too long to arrive.",
                status=408,
                code="request_timeout",
            )
        )

    def _cut(self, error: RequestError) -> None:
        """Answer, where no answer has begun, and close."""
        _log.info("cut off a client: %s", error.code)
        self._stop_timer()
        if not self._answers():
            path = self.url.decode("ascii", "replace")
            self.transport.write(_answer(error, shape_of(path)))
        self.transport.close()

    def _answers(self) -> bool:
        """Whether something is being written, for this request or one before it."""
        if self.pipeline or self.cycle is None:
            return bool(self.pipeline)
        cycle: Any = self.cycle
        its_own = self._phase is _Phase.BODY
        return bool(cycle.response_started if its_own else not cycle.response_complete)

    def _set_timer(self, phase: _Phase, seconds: float) -> None:
        self._stop_timer()
        self._timed = phase
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connections(limits: HeadLimits) -> type[Connection]:
    """The class that uvicorn makes connections of."""
    return type("Connection", (Connection,), {"limits": limits})


def _answer(error: RequestError, shape: Shape) -> bytes:
    """All of it: no app has seen the request."""
    id = f"req_{uuid.uuid4().hex}"
    body = orjson.dumps(shape.body(error, id))
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {id}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
