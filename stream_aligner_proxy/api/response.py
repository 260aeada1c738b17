"""Delivering a reply: one response class, two ways to write it.

The session runs while the client is listened to; the client's leaving cancels the session at once,
before the first byte too. Nothing is sent before there is something to deliver, so that an error
until then is an HTTP error with its own status; after it, an error is one SSE frame.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stream_aligner_proxy.api.errors import answer, internal_error, log_error
from stream_aligner_proxy.api.frames import DONE, Chunks, Gatherer, error_frame
from stream_aligner_proxy.core.errors import Overloaded, ProxyError
from stream_aligner_proxy.core.records import Delivery, Finished
from stream_aligner_proxy.session import Reply

_log = logging.getLogger(__name__)

EVENT_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # nginx would gather the events otherwise.
    "x-accel-buffering": "no",
}


# Asked for when the answer begins.
_Headers = Callable[[], Mapping[str, str]]


class _ClientLeft(Exception):
    """Ends the task group of a request."""


class HttpOut:
    """The connection to the client: start once, then bytes, then the end.

    `send` waits while the client is slow: the server's write buffer is bounded.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self.started = False
        self._ended = False

    async def client_gone(self) -> None:
        """Raises `_ClientLeft` if the client leaves before the end."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._ended:
            return  # servers also say so when all has been written
        raise _ClientLeft

    async def start(self, headers: Mapping[str, str]) -> None:
        self.started = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self._ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def refuse(self, error: ProxyError, headers: Mapping[str, str]) -> None:
        """Answer with an HTTP error; only before `start`."""
        self.started = self._ended = True
        await answer(error, dict(headers))(self._scope, self._receive, self._send)


def _shutting_down() -> ProxyError:
    return Overloaded("The server is shutting down.", headers={"retry-after": "1"})


class WatchedResponse(Response):
    """A response that runs until it has been written or the client has left."""

    def __init__(
        self,
        *,
        request_id: str,
        headers: _Headers,
        count_error: Callable[[ProxyError], None],
    ) -> None:
        super().__init__()
        self._request_id = request_id
        self._reply_headers = headers
        self._count_error = count_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = HttpOut(scope, receive, send)
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(out.client_gone())
                try:
                    await self.write_to(out)
                except ProxyError as error:
                    await self._fail(out, error)
                except asyncio.CancelledError:
                    if not watcher.done():  # it is the server that stops, not the client
                        await self._fail(out, _shutting_down())
                    raise
                except Exception:  # noqa: BLE001 - the top of the request: whatever it is, the client gets an end
                    _log.exception("request %s: internal error", self._request_id)
                    await self._fail(out, internal_error())
                watcher.cancel()
        except* _ClientLeft:
            _log.info("request %s: the client left", self._request_id)

    async def write_to(self, out: HttpOut) -> None:
        """Write the reply. Errors raised here become an HTTP error or an error frame."""
        raise NotImplementedError

    async def _fail(self, out: HttpOut, error: ProxyError) -> None:
        self._count_error(error)
        log_error(error, self._request_id)
        if out.started:
            await out.end(error_frame(error) + DONE)
        else:
            await out.refuse(error, self._reply_headers())


class _Running(Protocol):
    async def run(self, reply: Reply) -> Finished: ...


class _Events:
    """Writes deliveries as SSE."""

    def __init__(self, out: HttpOut, headers: _Headers, chunks: Chunks) -> None:
        self._out = out
        self._headers = headers
        self._chunks = chunks

    async def deliver(self, delivery: Delivery) -> None:
        event = self._chunks.delivery(delivery)
        if event:
            await self._out.write(await self._start() + event)

    async def finish(self, finished: Finished) -> None:
        await self._out.end(await self._start() + self._chunks.last(finished))

    async def _start(self) -> bytes:
        if self._out.started:
            return b""
        await self._out.start({**self._headers(), **EVENT_STREAM_HEADERS})
        return self._chunks.first()


class _Whole:
    """Gathers the same deliveries into one JSON body."""

    def __init__(self, out: HttpOut, headers: _Headers, gatherer: Gatherer) -> None:
        self._out = out
        self._headers = headers
        self._gatherer = gatherer

    async def deliver(self, delivery: Delivery) -> None:
        self._gatherer.add(delivery)

    async def finish(self, finished: Finished) -> None:
        body = self._gatherer.completion(finished)
        described = {"content-type": "application/json", "content-length": str(len(body))}
        await self._out.start({**self._headers(), **described})
        await self._out.end(body)


class ReplyResponse(WatchedResponse):
    """An aligned reply, as a stream of chunks or as one completion: the same session either way."""

    def __init__(
        self,
        session: _Running,
        *,
        model: str,
        stream: bool,
        include_usage: bool,
        provenance: bool,
        request_id: str,
        headers: _Headers,
        count_error: Callable[[ProxyError], None],
    ) -> None:
        super().__init__(request_id=request_id, headers=headers, count_error=count_error)
        self._session = session
        self._model = model
        self._stream = stream
        self._include_usage = include_usage
        self._provenance = provenance

    async def write_to(self, out: HttpOut) -> None:
        reply_id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        writer: _Events | _Whole
        if self._stream:
            chunks = Chunks(
                reply_id=reply_id,
                created=created,
                model=self._model,
                include_usage=self._include_usage,
                provenance=self._provenance,
            )
            writer = _Events(out, self._reply_headers, chunks)
        else:
            gatherer = Gatherer(
                reply_id=reply_id,
                created=created,
                model=self._model,
                provenance=self._provenance,
            )
            writer = _Whole(out, self._reply_headers, gatherer)
        await writer.finish(await self._session.run(writer))
