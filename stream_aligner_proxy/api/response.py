"""Delivering a reply: one response class, two ways to write it.

The session runs while the client is listened to; the client's leaving cancels the session at once,
before the first byte too. Nothing is sent before there is something to deliver, so that an error
until then is an HTTP error with its own status; after it, an error is one SSE frame.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stream_aligner_proxy.api.errors import answer, internal_error, log_error
from stream_aligner_proxy.api.faces.face import Events, Face, Shape, Whole
from stream_aligner_proxy.api.headers import cost_headers
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.core.errors import DeadlineExceeded, Overloaded, ProxyError
from stream_aligner_proxy.core.records import Delivery, Finished
from stream_aligner_proxy.session import Reply, first_error

_log = logging.getLogger(__name__)

# For so long a client may take its time with the last words of a server that stops.
_LAST_WORDS_SECONDS = 1.0

# Where in the ASGI scope the server may leave a way to cut the connection.
ABORT = "stream_aligner.abort"

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


class _ClientStuck(_ClientLeft):
    """It holds the connection and takes nothing."""


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
        self._waiting = 0  # writes, one for each choice at most, that the client has not taken yet
        self._taken = 0

    def cut(self) -> None:
        """Close the connection, and do not wait for what is still to be sent."""
        if abort := self._scope.get(ABORT):
            abort()

    async def client_gone(self, patience: float) -> None:
        """Raises `_ClientLeft` if the client leaves before the end, or takes nothing for more than
        `patience` seconds of what is being written to it."""
        seen = -1
        while True:
            try:
                async with asyncio.timeout(patience):
                    await self._hear_of_leaving()
            except TimeoutError:
                if self._waiting and self._taken == seen:
                    raise _ClientStuck from None
                seen = self._taken if self._waiting else -1
            else:
                if self._ended:
                    return  # servers also say so when all has been written
                raise _ClientLeft

    async def _hear_of_leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, headers: Mapping[str, str]) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        self.started = True  # not while it waits: cut short there, nothing was sent

    async def write(self, data: bytes) -> None:
        await self._hand_over({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self._ended = True
        await self._hand_over({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A JSON body in one go."""
        described = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start({**(headers or {}), **described})
        await self.end(body)

    async def _hand_over(self, message: Message) -> None:
        self._waiting += 1
        try:
            await self._send(message)
        finally:  # cut short it waits no longer, and another may come after it
            self._waiting -= 1
        self._taken += 1

    async def refuse(
        self, error: ProxyError, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        """Answer with an HTTP error; only before `start`."""
        self.started = self._ended = True
        await answer(error, body, headers)(self._scope, self._receive, self._send)


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
        shape: Shape,
        patience: Patience | None = None,
    ) -> None:
        super().__init__()
        self._patience = patience or Patience()
        self._shape = shape
        self._request_id = request_id
        self._reply_headers = headers
        self._count_error = count_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = HttpOut(scope, receive, send)
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(out.client_gone(self._patience.client))
                try:
                    await self._write_in_time(out)
                except ProxyError as error:
                    await self._fail(out, error)
                except asyncio.CancelledError:
                    if not watcher.done():  # it is the server that stops, not the client
                        await self._take_leave(out)
                    raise
                except Exception:  # noqa: BLE001 - the top of the request: whatever it is, the client gets an end
                    _log.exception("request %s: internal error", self._request_id)
                    await self._fail(out, internal_error())
                watcher.cancel()
        except* _ClientStuck:
            _log.info("request %s: the client took nothing any more", self._request_id)
            out.cut()
        except* _ClientLeft:
            _log.info("request %s: the client left", self._request_id)

    async def _write_in_time(self, out: HttpOut) -> None:
        """Raises `DeadlineExceeded`, and what `write_to` raises."""
        seconds = self._patience.reply
        try:
            async with asyncio.timeout(seconds) as limit:
                await self.write_to(out)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"The reply took more than {seconds:g} seconds.") from error

    async def _take_leave(self, out: HttpOut) -> None:
        """Say that the server stops, which does not wait for a client that takes nothing."""
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._fail(out, _shutting_down())
        except TimeoutError:
            out.cut()

    async def write_to(self, out: HttpOut) -> None:
        """Write the reply. Errors raised here become an HTTP error or an error frame."""
        raise NotImplementedError

    async def _fail(self, out: HttpOut, error: ProxyError) -> None:
        self._count_error(error)
        log_error(error, self._request_id)
        if out.started:
            await self.break_off(out, error)
        else:
            body = self._shape.body(error, self._request_id)
            await out.refuse(error, self._reply_headers(), body)

    async def break_off(self, out: HttpOut, error: ProxyError) -> None:
        """End an answer that has begun and failed: a last event."""
        await out.end(self._shape.end(error, self._request_id))


class _Running(Protocol):
    async def run(self, reply: Reply) -> Finished: ...


class _Stream:
    """Writes deliveries as SSE."""

    def __init__(self, out: HttpOut, headers: _Headers, events: Events) -> None:
        self._out = out
        self._headers = headers
        self._events = events
        self._begun = False
        self._beginning = asyncio.Lock()

    async def deliver(self, delivery: Delivery, choice: int) -> None:
        if event := self._events.delivery(delivery, choice):
            await self._write(event)

    async def ended(self, finished: Finished, choice: int) -> None:
        await self._write(self._events.finished(finished, choice))

    async def finish(self, finished: Sequence[Finished]) -> None:
        await self._out.end(self._events.last(finished))

    async def _write(self, event: bytes) -> None:
        if not self._begun:
            async with self._beginning:  # or another choice would be written before the first words
                if not self._begun:
                    await self._out.start({**self._headers(), **EVENT_STREAM_HEADERS})
                    await self._out.write(self._events.first() + event)
                    self._begun = True
                    return
        if event:
            await self._out.write(event)


class _Gathering:
    """Gathers the same deliveries into one JSON body."""

    def __init__(self, out: HttpOut, headers: _Headers, whole: Whole) -> None:
        self._out = out
        self._headers = headers
        self._whole = whole

    async def deliver(self, delivery: Delivery, choice: int) -> None:
        self._whole.add(delivery, choice)

    async def ended(self, finished: Finished, choice: int) -> None:
        pass

    async def finish(self, finished: Sequence[Finished]) -> None:
        body = self._whole.completion(finished)
        await self._out.whole(body, {**self._headers(), **cost_headers(finished)})


class _Choice:
    """Where the session of one choice delivers."""

    def __init__(self, writer: _Stream | _Gathering, choice: int) -> None:
        self._writer = writer
        self._number = choice

    async def deliver(self, delivery: Delivery) -> None:
        await self._writer.deliver(delivery, self._number)

    async def take(self, session: _Running) -> Finished:
        """The whole of one choice."""
        finished = await session.run(self)
        await self._writer.ended(finished, self._number)
        return finished


class ReplyResponse(WatchedResponse):
    """Aligned replies, one for each choice, as a stream or as one object: the same sessions either
    way."""

    def __init__(
        self,
        sessions: Sequence[_Running],
        plan: Plan,
        face: Face,
        *,
        headers: _Headers,
        count_error: Callable[[ProxyError], None],
        patience: Patience | None = None,
    ) -> None:
        super().__init__(
            request_id=plan.request.request_id,
            headers=headers,
            count_error=count_error,
            shape=face.shape,
            patience=patience,
        )
        self._sessions = sessions
        self._plan = plan
        self._face = face

    async def write_to(self, out: HttpOut) -> None:
        writer: _Stream | _Gathering
        if self._plan.stream:
            writer = _Stream(out, self._reply_headers, self._face.events(self._plan))
        else:
            writer = _Gathering(out, self._reply_headers, self._face.whole(self._plan))
        if len(self._sessions) == 1:
            finished = [await _Choice(writer, 0).take(self._sessions[0])]
        else:
            finished = await self._take_all(writer)
        await writer.finish(finished)

    async def _take_all(self, writer: _Stream | _Gathering) -> list[Finished]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_Choice(writer, number).take(session))
                    for number, session in enumerate(self._sessions)
                ]
        except BaseExceptionGroup as failed:
            # One that failed ends them all; what failed first is what the client is told.
            raise first_error(failed) from failed
        return [task.result() for task in tasks]
