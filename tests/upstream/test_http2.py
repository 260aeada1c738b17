"""HTTP/2 against a real server: streams share a connection, and closing one stops it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.lowlevel
import orjson
import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived
from yarl import URL

from stream_aligner_proxy.core.errors import (
    ConfigError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from stream_aligner_proxy.upstream.http2 import Connection
from tests.tls import serve_tls

pytestmark = pytest.mark.anyio

REPLY = "Anna has 3 apples. She eats one. So 2 are left."


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Seen:
    """The app in the middle: which connection and protocol each request came by."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests: list[tuple[str, int]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests.append((scope["http_version"], scope["client"][1]))
        await self.app(scope, receive, send)

    @property
    def connections(self) -> int:
        return len({port for _, port in self.requests})


@asynccontextmanager
async def scripted(
    authority: trustme.CA, folder: Path, *rules: Rule, http2: bool = True, **options: Any
) -> AsyncIterator[tuple[HttpUpstream, ScriptedUpstream, Seen]]:
    app = ScriptedUpstream(Script(rules or (Rule(REPLY),)))
    seen = Seen(app)
    async with serve_tls(seen, authority, folder, **options) as base:
        upstream = HttpUpstream(
            "main",
            base,
            "vllm",
            timeouts=Timeouts(connect=5, first_byte=5, between_chunks=5, total=30),
            http2=http2,
            ca_file=folder / "ca.pem",
        )
        try:
            yield upstream, app, seen
        finally:
            await upstream.aclose()


def chat(text: str = "How many?") -> ChatRequest:
    body = {"model": "scripted", "messages": [{"role": "user", "content": text}]}
    return ChatRequest("scripted", body, ())


async def reply(upstream: HttpUpstream, request: ChatRequest, prefix: str = "") -> str:
    async with upstream.open(request, prefix=prefix) as chunks:
        return "".join([chunk.text async for chunk in chunks])


async def test_branches_at_once_share_one_connection(authority, tmp_path) -> None:
    async with scripted(authority, tmp_path) as (upstream, _, seen):
        replies = await asyncio.gather(*(reply(upstream, chat()) for _ in range(20)))
    assert replies == [REPLY] * 20
    assert {version for version, _ in seen.requests} == {"2"}
    assert seen.connections == 1


async def test_leaving_a_branch_stops_it_and_the_next_needs_no_new_connection(
    authority, tmp_path
) -> None:
    slow = Rule(REPLY, pace=0.05)
    async with scripted(authority, tmp_path, slow) as (upstream, app, seen):
        async with upstream.open(chat()) as chunks:
            await anext(aiter(chunks))
        await app.until(lambda a: a.running == 0)
        assert app.requests[0].left_at is not None
        prefix = "Anna has 3 apples."
        assert await reply(upstream, chat(), prefix) == REPLY.removeprefix(prefix)
        assert seen.connections == 1


async def test_a_server_without_http2_is_spoken_to_in_its_own(authority, tmp_path) -> None:
    async with scripted(authority, tmp_path, alpn=("http/1.1",)) as (upstream, _, seen):
        assert [await reply(upstream, chat()) for _ in range(2)] == [REPLY] * 2
    assert {version for version, _ in seen.requests} == {"1.1"}


async def test_http2_can_be_switched_off(authority, tmp_path) -> None:
    async with scripted(authority, tmp_path, http2=False) as (upstream, _, seen):
        assert await reply(upstream, chat()) == REPLY
    assert {version for version, _ in seen.requests} == {"1.1"}


async def test_a_question_larger_than_every_window_arrives(authority, tmp_path) -> None:
    async with scripted(authority, tmp_path) as (upstream, app, _):
        question = "How many? " * 300_000
        assert await reply(upstream, chat(question)) == REPLY
        assert app.requests[0].body["messages"][0]["content"] == question


class Torrent:
    """Writes a megabyte as fast as it is taken, or one word, and counts what was taken."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        asked = orjson.loads((await receive())["body"])["messages"][-1]["content"]
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(1000 if asked == "all" else 1):
            choice = {"index": 0, "delta": {"content": "water " * 170}, "finish_reason": None}
            event = b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self.sent += asked == "all"
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        event = b"data: " + orjson.dumps(last) + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": False})


async def test_an_unread_branch_holds_up_its_server_and_no_other_branch(
    authority, tmp_path
) -> None:
    app = Torrent()
    async with serve_tls(app, authority, tmp_path) as base:
        upstream = HttpUpstream("main", base, ca_file=tmp_path / "ca.pem")
        async with upstream.open(chat("all")) as chunks:
            read = [await anext(aiter(chunks))]
            for _ in range(20):
                assert await reply(upstream, chat("a bit")) == "water " * 170
            assert app.sent < 800  # it waits for its window, which is 256 KiB
            read += [chunk async for chunk in chunks]
        assert sum(len(chunk.text) for chunk in read) == 1000 * len("water " * 170)
        await upstream.aclose()


@pytest.mark.parametrize("again", [None, 0, 2])
async def test_branches_cancelled_at_any_moment_leave_the_connection_whole(
    authority, tmp_path, again: int | None
) -> None:
    async with scripted(authority, tmp_path) as (upstream, app, seen):
        assert await reply(upstream, chat()) == REPLY
        for steps in range(0, 40, 3):
            tasks = [asyncio.create_task(reply(upstream, chat())) for _ in range(4)]
            for pause in (steps, again):
                for _ in range(pause or 0):
                    await anyio.lowlevel.checkpoint()
                if pause is not None:
                    for task in tasks:
                        task.cancel()
            await asyncio.wait(tasks)
            replies = await asyncio.gather(*(reply(upstream, chat()) for _ in range(4)))
            assert replies == [REPLY] * 4, f"after {steps} steps"
        await app.until(lambda a: a.running == 0)
        assert seen.connections == 1


async def test_a_server_that_goes_away_in_the_middle_is_an_error_and_the_next_connects_anew(
    authority, tmp_path
) -> None:
    slow = Rule(REPLY, pace=0.2)
    async with scripted(authority, tmp_path, slow) as (upstream, _, seen):
        async with upstream.open(chat()) as chunks:
            await anext(aiter(chunks))
            upstream._endpoint._connections._http2._connections[0]._transport.abort()
            with pytest.raises(UpstreamError, match="upstream 'main'") as caught:
                [chunk async for chunk in chunks]
        assert caught.value.transient
        assert await reply(upstream, chat()) == REPLY
        assert seen.connections == 2


@asynccontextmanager
async def lossy(port: int) -> AsyncIterator[tuple[int, list[asyncio.Event]]]:
    """A port before another; what comes by a connection is lost once its event is set."""
    lost: list[asyncio.Event] = []
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: Any, writer: Any, gone: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if not gone.is_set():
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost.append(gone := asyncio.Event())
        there, onward = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, onward))
        for pair in ((reader, onward), (there, writer)):
            tasks.add(asyncio.create_task(pump(*pair, gone)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], lost
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(w.wait_closed() for w in writers), return_exceptions=True)


async def test_a_connection_that_nothing_comes_by_any_more_is_not_used_again(
    authority, tmp_path
) -> None:
    async with scripted(authority, tmp_path) as (behind, _, _):
        base = behind._endpoint.base
        async with lossy(base.port) as (port, lost):
            upstream = HttpUpstream(
                "main",
                str(base.with_port(port)),
                "vllm",
                timeouts=Timeouts(first_byte=1.1),
                ca_file=tmp_path / "ca.pem",
            )
            assert await reply(upstream, chat()) == REPLY
            lost[0].set()  # without a word, as when a machine is switched off
            with pytest.raises(UpstreamTimeout):
                await reply(upstream, chat())
            assert await reply(upstream, chat()) == REPLY
            assert len(lost) == 2
            await upstream.aclose()


class _Transport(asyncio.Transport):
    """To a server in memory."""

    def __init__(self, server: H2Connection) -> None:
        super().__init__(
            {"ssl_object": type("Tls", (), {"selected_alpn_protocol": lambda _: "h2"})()}
        )
        self.server = server
        self.events: list[Any] = []

    def write(self, data: Any) -> None:
        self.events += self.server.receive_data(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...


async def test_a_whole_answer_counts_although_the_rest_of_the_request_is_refused() -> None:
    server = H2Connection(H2Configuration(client_side=False))
    connection, transport = Connection(), _Transport(server)
    connection.connection_made(transport)
    server.initiate_connection()
    # Larger than the window: it cannot all be sent.
    asked = asyncio.create_task(connection.request("POST", URL("https://a/"), {}, b"x" * 100_000))
    while not any(  # noqa: ASYNC110
        isinstance(event, RequestReceived) for event in transport.events
    ):
        await asyncio.sleep(0)
    server.send_headers(1, [(":status", "413")])
    server.send_data(1, b"too much", end_stream=True)
    server.reset_stream(1, ErrorCodes.NO_ERROR)
    connection.data_received(server.data_to_send())
    stream = await asyncio.wait_for(asked, 5)
    assert stream.status == 413
    assert await stream.content.readany() == b"too much"
    assert await stream.content.readany() == b""


async def test_who_is_not_trusted_or_not_there_cannot_be_reached(authority, tmp_path) -> None:
    async with serve_tls(ScriptedUpstream(Script((Rule(REPLY),))), authority, tmp_path) as base:
        stranger = HttpUpstream("main", base)
        with pytest.raises(UpstreamUnreachable, match="its certificate is not trusted") as caught:
            await reply(stranger, chat())
        assert "127.0.0.1" not in caught.value.message
        await stranger.aclose()
    gone = HttpUpstream("main", base)
    with pytest.raises(UpstreamUnreachable, match="the connection was refused"):
        await reply(gone, chat())
    await gone.aclose()


async def test_a_file_of_authorities_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.main\.ca_file"):
        HttpUpstream("main", "https://127.0.0.1:1/v1", ca_file=tmp_path / "none.pem")
