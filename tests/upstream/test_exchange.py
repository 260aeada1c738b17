"""The exchange against raw sockets: what a server can do that no framework would."""

import asyncio
import gzip
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.upstream import client
from stream_aligner_proxy.upstream.client import HttpUpstream, Relayed
from stream_aligner_proxy.upstream.exchange import Timeouts
from tests.upstream.test_client import chat, collect, text

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(
    handle: Handler, *, credentials: str = "", query: str = "", api_key: str | None = None
) -> AsyncIterator[HttpUpstream]:
    """An upstream client before a server that gives each request's bytes to `handle`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await handle(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    quick = Timeouts(connect=2, first_byte=2, between_chunks=2, total=10, ping=1)
    address = f"http://{credentials}127.0.0.1:{port}/v1{query}"
    upstream = HttpUpstream("main", address, timeouts=quick, api_key=api_key)
    try:
        yield upstream
    finally:
        await upstream.aclose()
        server.close()
        await server.wait_closed()


async def test_what_came_before_a_reset_is_handed_out_before_the_error() -> None:
    async def reset(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + TOKEN % b"Anna" + TOKEN % b" has")
        await writer.drain()
        # Data and reset leave back to back: both may wait in the client's socket.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with answering(reset) as upstream:
        for _ in range(20):
            got: list[Chunk] = []
            with pytest.raises(UpstreamError):
                await collect(upstream, chat(), into=got)
            # The kernel may drop what it has not handed over when the reset comes.
            assert text(got) in ("", "Anna has")


async def test_what_the_reader_still_holds_when_the_body_breaks_off_is_not_lost() -> None:
    answered = asyncio.Event()

    async def break_off(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        await answered.wait()
        body = TOKEN % b"Anna" + TOKEN % b" has"
        # One packet: the text, then what is no HTTP chunk.
        writer.write(b"%x\r\n%b\r\nno size\r\n" % (len(body), body))
        await writer.drain()

    got: list[Chunk] = []

    async def read(upstream: HttpUpstream) -> None:
        async with upstream.open(chat()) as chunks, asyncio.timeout(5):
            answered.set()
            # As where back-pressure holds the reader: it looks only when all is over.
            body = chunks._exchange._response.content  # type: ignore[attr-defined]
            while body.exception() is None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            async for chunk in chunks:
                got.append(chunk)

    async with answering(break_off) as upstream:
        with pytest.raises(UpstreamGarbled, match="broke off"):
            await read(upstream)
    assert text(got) == "Anna has"


async def test_many_events_in_one_packet_are_as_many_chunks() -> None:
    async def at_once(head: bytes, writer: asyncio.StreamWriter) -> None:
        tokens = b"".join(TOKEN % b"%d " % number for number in range(500))
        writer.write(HEAD + b"\r\n" + tokens + STOP)
        await writer.drain()

    async with answering(at_once) as upstream:
        chunks = await collect(upstream, chat())
    assert text(chunks) == "".join(f"{number} " for number in range(500))
    assert [chunk.tokens for chunk in chunks if chunk.text] == [1] * 500


@pytest.mark.parametrize("relayed", [True, False])
async def test_an_upstream_that_keeps_its_connection_warm_after_the_end_ends_no_later(
    relayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments for ever, each in time: a reply is whole with its finish reason."""
    monkeypatch.setattr("stream_aligner_proxy.upstream.streams._AFTER_FINISH_SECONDS", 0.1)

    async def trickle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + TOKEN % b"Hi." + STOP.removesuffix(b"data: [DONE]\n\n"))
        while not writer.is_closing():
            writer.write(b": still here\n\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    async with answering(trickle) as upstream, asyncio.timeout(5):
        if relayed:
            async with upstream.relay(chat().body, {}, stream=True) as told:
                said = b"".join([frame async for frame in told.frames])
            assert said.endswith(b"data: [DONE]\n\n")
        else:
            assert text(await collect(upstream, chat())) == "Hi."


async def test_a_compressed_answer_is_unpacked_though_none_was_asked_for() -> None:
    asked: list[bytes] = []

    async def compressed(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head.lower())
        writer.write(HEAD + b"content-encoding: gzip\r\n\r\n")
        writer.write(gzip.compress(TOKEN % b"Hi." + STOP))
        await writer.drain()

    async with answering(compressed) as upstream:
        assert text(await collect(upstream, chat())) == "Hi."
    assert b"accept-encoding: identity\r\n" in asked[0]


async def test_a_redirect_is_refused_and_not_followed() -> None:
    asked = 0

    async def redirect(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(
            b"HTTP/1.1 307 Go\r\nlocation: /v1/chat/completions\r\ncontent-length: 0\r\n\r\n"
        )
        await writer.drain()

    async with answering(redirect) as upstream:
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat())
    assert caught.value.status == 502
    assert asked == 1


async def test_a_server_that_speaks_something_else_is_garbled() -> None:
    async def greet(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()

    async with answering(greet) as upstream:
        with pytest.raises(UpstreamGarbled, match="did not answer in HTTP"):
            await collect(upstream, chat())


async def test_a_server_that_hangs_up_closed_without_answering() -> None:
    async def hang_up(head: bytes, writer: asyncio.StreamWriter) -> None:
        pass

    async with answering(hang_up) as upstream:
        with pytest.raises(UpstreamUnreachable, match="without answering"):
            await collect(upstream, chat())


@pytest.mark.parametrize("api_key", [None, "sk-of-the-proxy"])
async def test_credentials_in_the_address_become_basic_authorization(api_key: str | None) -> None:
    asked: list[bytes] = []

    async def note(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head)
        writer.write(HEAD + b"\r\n" + TOKEN % b"Hi." + STOP)
        await writer.drain()

    async with answering(note, credentials="anna:s%40cret@", api_key=api_key) as upstream:
        await collect(upstream, chat(headers={"authorization": "Bearer theirs"}))
    assert b"authorization: Basic YW5uYTpzQGNyZXQ=\r\n" in asked[0]
    assert asked[0].count(b"uthorization") == 1
    assert b"anna" not in asked[0]


async def test_a_query_in_the_address_goes_with_every_request() -> None:
    asked: list[bytes] = []

    async def note(head: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(head.split(b"\r\n")[0])
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 11\r\n\r\n"
        writer.write(head + b'{"data":[]}')
        await writer.drain()

    async with answering(note, query="?api-version=7") as upstream:
        await upstream.models()
        with pytest.raises(UpstreamGarbled):
            await collect(upstream, chat())
    assert asked == [
        b"GET /v1/models?api-version=7 HTTP/1.1",
        b"POST /v1/chat/completions?api-version=7 HTTP/1.1",
    ]


async def test_a_body_is_read_no_faster_than_it_is_taken() -> None:
    stuck = asyncio.Event()

    async def flood(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n")
        while writer.transport.get_write_buffer_size() < 32 * 1024 * 1024:
            writer.write((TOKEN % b"word ") * 1000)
            await asyncio.sleep(0)
        # Far more than sockets hold: nobody takes it.
        stuck.set()
        await writer.drain()

    async with answering(flood) as upstream, upstream.open(chat()) as chunks:
        assert (await anext(chunks)).text
        async with asyncio.timeout(10):
            await stuck.wait()


@pytest.mark.parametrize("relayed", [False, True])
async def test_the_body_of_the_request_is_not_kept_while_the_answer_comes(
    relayed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, sent = client.encode, []

    def noted(body: Mapping[str, Any]) -> bytes:
        sent.append(encode(body))
        return sent[-1]

    monkeypatch.setattr(client, "encode", noted)
    over = asyncio.Event()

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"connection: close\r\n\r\n" + TOKEN % b"Yes.")
        await over.wait()
        writer.write(STOP)

    async with answering(handle) as upstream:
        asked = chat()
        opened = upstream.relay(asked.body, {}, stream=True) if relayed else upstream.open(asked)
        async with opened as answer:
            chunks = answer.frames if isinstance(answer, Relayed) else answer
            await anext(chunks)
            held = sys.getrefcount(sent[0])
            over.set()
            async for _ in chunks:
                pass
    assert len(sent) == 1
    assert held == 2  # by the list, and by the call itself


async def test_a_server_that_is_asked_too_often_is_there() -> None:
    async def busy(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with answering(busy, api_key="k") as upstream:
        await upstream.ping()
        with pytest.raises(UpstreamRejected):
            await upstream.models()
