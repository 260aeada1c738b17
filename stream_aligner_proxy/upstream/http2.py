"""HTTP/2 to one server: many streams on one connection.

Closing a branch in the middle ends an HTTP/1.1 connection, and the branch that continues it begins
with new handshakes. Here closing is a RST_STREAM, and the connection stays. Used over TLS where the
server offers it (ALPN), else HTTP/1.1 is spoken. `h2` does the protocol; the clients built on it
(httpx) do not reset the streams they abandon, and the server would write on (encode/httpcore#1022).

Rule: a body that is not read is not acknowledged, so a slow reader holds up its own stream, by the
size of its window, and no other.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

import aiohttp
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from multidict import CIMultiDict
from yarl import URL

_STREAM_WINDOW = 256 * 1024
_CONNECTION_WINDOW = 16 * 1024 * 1024
_DEFAULT_WINDOW = 65_535
# A connection that was idle for longer may be dead without either end knowing.
_IDLE_SECONDS = 60.0
# One that nothing came by for so long, while a stream waited that was given up then, may be dead,
# too: new streams get another.
_SILENT_SECONDS = 1.0
# Stream ids are used up at 2^31.
_LAST_ID = 2**30


class Body:
    """What has come of an answer's body; read by one task. The part of aiohttp's reader in use."""

    def __init__(self, stream: "Stream") -> None:
        self._stream = stream
        self._data = bytearray()
        self._over = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def readany(self) -> bytes:
        """What is there, or the next that comes; empty at the end. Raises what it was told."""
        while not self._data and not self._over and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        return self._read_nowait(-1)

    def _read_nowait(self, size: int) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        self._stream.acknowledge(len(data))
        return data

    def feed(self, data: bytes) -> None:
        self._data += data
        self._wake()

    def feed_eof(self) -> None:
        self._over = True
        self._wake()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stream:
    """One request and its answer."""

    def __init__(self, owner: "Connection", number: int) -> None:
        self._owner = owner
        self.number = number
        self.begun = asyncio.get_running_loop().time()
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.content = Body(self)
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False  # by the server
        self.closed = False

    def acknowledge(self, size: int) -> None:
        if size and not self.closed and not self.ended:
            self._owner.acknowledge(self.number, size)

    def answer(self, headers: list[tuple[str, str]]) -> None:
        self.headers = CIMultiDict((name, value) for name, value in headers if name[0] != ":")
        self.status = int(dict(headers).get(":status", "0"))
        if not self.answered.done():
            self.answered.set_result(None)

    def end(self) -> None:
        self.ended = True
        self.content.feed_eof()

    def fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
            self.answered.exception()  # whoever asked may have left
        self.content.set_exception(error)

    def close(self) -> None:
        """Tell the server to stop, unless it has ended."""
        if not self.closed:
            self.closed = True
            self._owner.release(self)


class Connection(asyncio.Protocol):
    """One connection, from its first byte to its last."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
            },
        )
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._room = asyncio.Event()  # something may be sent that could not before
        self._full = False  # of the transport's buffer
        self._loop = asyncio.get_running_loop()
        self._idle_since = self._heard = self._loop.time()
        self._last_id = 0
        self.spoken = False  # whether the server has chosen HTTP/2
        self.usable = True
        self._silent = False  # nobody may be there to take leave of

    @property
    def has_room(self) -> bool:
        """Whether another stream may be opened."""
        if not self._streams and self._loop.time() - self._idle_since > _IDLE_SECONDS:
            self.close()
        most = self._h2.remote_settings.max_concurrent_streams
        return self.usable and self._last_id < _LAST_ID and len(self._streams) < most

    async def request(
        self, method: str, url: URL, headers: Mapping[str, str], content: bytes | None
    ) -> Stream:
        """Send a request; its answer, when the headers have come.

        Raises `aiohttp.ClientConnectionError`. Whoever cancels it has nothing to close.
        """
        try:
            stream = self._open(method, url, headers, with_body=bool(content))
        except ProtocolError as error:
            raise aiohttp.ClientConnectionError("the connection takes no more streams") from error
        try:
            if content:
                await self._send(stream, content)
            await stream.answered
        except ProtocolError as error:
            stream.close()
            raise aiohttp.ClientConnectionError("the server closed the stream") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            (self._transport.abort if self._silent else self._transport.close)()

    def _open(
        self, method: str, url: URL, headers: Mapping[str, str], *, with_body: bool
    ) -> Stream:
        fields = [
            (":method", method),
            (":scheme", url.scheme),
            (":authority", url.authority),
            (":path", url.raw_path_qs),
            *((name.lower(), value) for name, value in headers.items()),
        ]
        number = self._last_id = self._h2.get_next_available_stream_id()
        stream = self._streams[number] = Stream(self, number)
        self._h2.send_headers(number, fields, end_stream=not with_body)
        self._flush()
        return stream

    async def _send(self, stream: Stream, content: bytes) -> None:
        view = memoryview(content)
        while view:
            if stream.answered.done() or stream.ended:
                return  # refused before it was heard to the end, or lost
            most = min(
                self._h2.local_flow_control_window(stream.number), self._h2.max_outbound_frame_size
            )
            if most <= 0 or self._full:
                self._room.clear()
                await self._room.wait()
                continue
            piece, view = view[:most], view[most:]
            self._h2.send_data(stream.number, bytes(piece), end_stream=not view)
            self._flush()

    def acknowledge(self, number: int, size: int) -> None:
        """Let the server send as much again on a stream."""
        if self.usable or self._streams:
            with suppress(ProtocolError):
                self._h2.increment_flow_control_window(size, number)
                self._flush()

    def release(self, stream: Stream) -> None:
        """A stream that nobody reads any more."""
        if self._streams.pop(stream.number, None) is None:
            return
        if not stream.ended:
            if self._loop.time() - max(self._heard, stream.begun) >= _SILENT_SECONDS:
                self.usable, self._silent = False, True
            with suppress(ProtocolError):
                self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
                self._flush()
        if not self._streams:
            self._idle_since = self._loop.time()
            if not self.usable:
                self.close()

    # --- what the transport tells ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Cast: uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        self.spoken = tls is not None and tls.selected_alpn_protocol() == "h2"
        if not self.spoken:
            self.usable = False
            return
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for event in self._h2.receive_data(data):
                self._take(event)
        except ProtocolError:
            self._lose(aiohttp.ClientPayloadError("the server broke the rules of HTTP/2"))
            self.close()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(aiohttp.ServerDisconnectedError())

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._room.set()

    def _take(self, event: Event) -> None:
        match event:
            case DataReceived():
                # The connection's window is always open; a stream's opens as it is read.
                size = event.flow_controlled_length
                if size:
                    self._h2.increment_flow_control_window(size)
                if stream := self._streams.get(event.stream_id or 0):
                    stream.content.feed(event.data or b"")
                    padding = size - len(event.data or b"")
                    if padding and event.stream_ended is None:
                        stream.acknowledge(padding)
            case ResponseReceived():
                if stream := self._streams.get(event.stream_id or 0):
                    stream.answer([(_text(k), _text(v)) for k, v in event.headers or ()])
            case StreamEnded():
                if stream := self._streams.get(event.stream_id or 0):
                    stream.end()
            case StreamReset():
                # After a whole answer it only says that the rest of the request is not wanted
                # (RFC 9113, 8.1).
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None and not stream.ended:
                    stream.ended = True
                    stream.fail(aiohttp.ClientConnectionError("the server reset the stream"))
                self._room.set()
            case ConnectionTerminated():
                self.usable = False
                last = event.last_stream_id
                if last is not None:
                    for stream in [s for s in self._streams.values() if s.number > last]:
                        stream.fail(aiohttp.ServerDisconnectedError())
                if not self._streams:
                    self.close()
            case WindowUpdated() | RemoteSettingsChanged():
                self._room.set()

    def _lose(self, error: Exception) -> None:
        self.usable = False
        for stream in self._streams.values():
            if not stream.ended:
                stream.fail(error)
        self._room.set()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


class Http2:
    """The HTTP/2 connections to one server."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """`context` is for this alone: it is made to offer HTTP/2."""
        context.set_alpn_protocols(["h2", "http/1.1"])
        self._context = context
        self._connections: list[Connection] = []
        self._lock = asyncio.Lock()
        self._offered = True

    async def connection(self, url: URL) -> Connection | None:
        """One with room for a stream, None where the server has only HTTP/1.1. Raises `OSError`."""
        if found := self._with_room():
            return found
        async with self._lock:
            if found := self._with_room():
                return found
            if not self._offered:
                return None
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                Connection, url.raw_host or "", url.port or 443, ssl=self._context
            )
            if not connection.spoken:
                self._offered = False
                connection.close()
                return None
            self._connections = [c for c in self._connections if c.usable]
            self._connections.append(connection)
            return connection

    def _with_room(self) -> Connection | None:
        return next((c for c in self._connections if c.has_room), None)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
