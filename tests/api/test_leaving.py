"""The client's leaving, slowness and the server's stopping."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, ClassVar

import httpx
import orjson
import pytest
import uvicorn

from stream_aligner_proxy.api.faces.chat import CHAT
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.relay import RelayResponse
from stream_aligner_proxy.api.response import ABORT, ReplyResponse
from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Review, Verdict
from stream_aligner_proxy.core.watching import Observer
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.session import Session
from tests.api.plans import plan
from tests.api.proxy import REPLY, Proxy, parse_frames, proxy, settings
from tests.fakes import FunctionAligner, MemoryUpstream
from tests.servers import serve

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def half_open(p: Proxy, **fields: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A request over a bare socket, which is cut at the end of the context."""
    host, port = p.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = orjson.dumps(p.body(**fields))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\n"
        b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()


def reply_tasks() -> list[asyncio.Task[Any]]:
    return [t for t in asyncio.all_tasks() if "Session" in repr(t.get_coro())]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
async def test_leaving_before_the_first_token_ends_the_upstreams_request(
    mode: str, stream: bool
) -> None:
    async with proxy(Rule(REPLY, fault=Fault(stall="first")), upstream={"timeouts": {}}) as p:
        async with half_open(p, stream=stream, stream_aligner={"mode": mode}):
            await p.upstream.until(lambda upstream: upstream.opened == 1)
        await p.upstream.until(lambda upstream: upstream.running == 0)
        assert reply_tasks() == []


@pytest.mark.parametrize("mode", ["stream", "shadow", "off"])
async def test_leaving_in_the_middle_ends_the_upstreams_request(mode: str) -> None:
    async with proxy(Rule(REPLY, fault=Fault(stall=6)), upstream={"timeouts": {}}) as p:
        async with half_open(p, stream=True, stream_aligner={"mode": mode}) as reader:
            await asyncio.wait_for(reader.readuntil(b"Anna"), 5)
        await p.upstream.until(lambda upstream: upstream.running == 0)
        assert reply_tasks() == []
        metrics = (await p.client.get("/metrics")).text
    assert f'replies_total{{mode="{mode}",outcome="cancelled"}} 1.0' in metrics
    assert f'open_replies{{mode="{mode}"}} 0.0' in metrics


class HeldAligner(FunctionAligner):
    """Never comes to a verdict; tells when it was asked and when the question was withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.withdrawn = asyncio.Event()

    async def review(self, review: Review, progress=None) -> Verdict:
        self.reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.withdrawn.set()
        raise AssertionError


async def test_leaving_during_a_review_withdraws_it() -> None:
    aligner = HeldAligner()
    async with proxy(aligner=aligner) as p:
        async with half_open(p, stream=True):
            await asyncio.wait_for(aligner.reached.wait(), 5)
        await asyncio.wait_for(aligner.withdrawn.wait(), 1)
        await p.upstream.until(lambda upstream: upstream.running == 0)


async def test_text_is_delivered_while_the_upstream_is_still_writing() -> None:
    rule = Rule(REPLY, fault=Fault(hold=6))
    async with proxy(rule) as p, half_open(p, stream=True) as reader:
        await asyncio.wait_for(reader.readuntil(b"Anna has 3 apples."), 5)
        assert p.upstream.running == 1
        p.upstream.release()
        await asyncio.wait_for(reader.readuntil(b"[DONE]"), 5)


class SlowClient:
    """An ASGI connection whose client takes `at_once` pieces, and the others when it has `taken`
    them."""

    def __init__(self, at_once: int = 0) -> None:
        self.sent = b""
        self.left = at_once
        self.taken = asyncio.Event()
        self.waiting = asyncio.Event()

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.sent += message.get("body", b"")
        if message.get("more_body"):
            self.left -= 1
            if self.left >= 0:
                return
            self.waiting.set()
            await self.taken.wait()


async def settled(read: Callable[[], int]) -> int:
    """What `read` gives when a thousand turns of the loop have not changed it."""
    last, same = read(), 0
    while same < 1000:
        await asyncio.sleep(0)
        same = same + 1 if read() == last else 0
        last = read()
    return last


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_client_that_does_not_read_slows_the_upstream_down(choices: int) -> None:
    upstream = MemoryUpstream(lambda prefix: ["Go on. "] * (6000 // choices))
    request = ChatRequest("m", {}, ())
    policy = Policy()
    sessions = [
        Session(request, upstream=upstream, aligner=FunctionAligner(), policy=policy)
        for _ in range(choices)
    ]
    response = ReplyResponse(
        sessions, plan(choices=choices), CHAT, headers=dict, count_error=lambda error: None
    )
    client = SlowClient()
    task = asyncio.create_task(response({"type": "http"}, client.receive, client.send))
    await asyncio.wait_for(client.waiting.wait(), 5)
    assert await settled(lambda: upstream.read) < 200 * choices
    client.taken.set()
    await asyncio.wait_for(task, 20)
    assert upstream.read == 6000
    assert client.sent.endswith(b"data: [DONE]\n\n")


def to_slow_client(choices: int = 1, **patience: float) -> tuple[ReplyResponse, MemoryUpstream]:
    """A reply of several choices that is longer than all that may wait for the client."""
    upstream = MemoryUpstream(lambda prefix: ["Go on. "] * 6000)
    request = ChatRequest("m", {}, ())
    sessions = [
        Session(request, upstream=upstream, aligner=FunctionAligner(), policy=Policy())
        for _ in range(choices)
    ]
    response = ReplyResponse(
        sessions,
        plan(choices=choices),
        CHAT,
        headers=dict,
        count_error=lambda error: None,
        patience=Patience(**patience),
    )
    return response, upstream


@pytest.mark.parametrize("choices", [1, 2, 3])
async def test_a_client_that_takes_nothing_any_more_is_let_go_and_its_connection_cut(
    choices: int,
) -> None:
    response, upstream = to_slow_client(choices, client=0.01)
    client, cut = SlowClient(at_once=5), asyncio.Event()
    scope = {"type": "http", ABORT: cut.set}
    task = asyncio.create_task(response(scope, client.receive, client.send))
    await asyncio.wait_for(cut.wait(), 5)
    await asyncio.wait_for(task, 5)
    assert upstream.opened == upstream.closed == choices
    assert not client.sent.endswith(b"data: [DONE]\n\n")


class DeafClient(SlowClient):
    """Takes not even the end."""

    async def send(self, message: Any) -> None:
        await super().send({**message, "more_body": message["type"] == "http.response.body"})


async def test_a_client_that_takes_nothing_is_let_go_when_the_reply_may_take_no_longer() -> None:
    response, upstream = to_slow_client(reply=0.03, client=0.1)
    client, cut = DeafClient(), asyncio.Event()
    scope = {"type": "http", ABORT: cut.set}
    task = asyncio.create_task(response(scope, client.receive, client.send))
    await asyncio.wait_for(cut.wait(), 2)
    await asyncio.wait_for(task, 2)
    assert upstream.opened == upstream.closed == 1


async def test_a_client_that_takes_nothing_does_not_hold_up_the_servers_stopping() -> None:
    response, upstream = to_slow_client(client=0.1)
    client, cut = DeafClient(), asyncio.Event()
    scope = {"type": "http", ABORT: cut.set}
    task = asyncio.create_task(response(scope, client.receive, client.send))
    await asyncio.wait_for(client.waiting.wait(), 5)
    task.cancel()
    await asyncio.wait((task,), timeout=2)
    assert task.done()
    assert cut.is_set()
    assert upstream.opened == upstream.closed == 1


async def test_a_slow_client_that_takes_something_now_and_then_keeps_its_stream() -> None:
    upstream = MemoryUpstream(lambda prefix: ["Go on. "] * 30)
    request = ChatRequest("m", {}, ())
    session = Session(request, upstream=upstream, aligner=FunctionAligner(), policy=Policy())
    patience = Patience(client=0.05)
    response = ReplyResponse(
        [session], plan(), CHAT, headers=dict, count_error=lambda error: None, patience=patience
    )
    sent = b""

    async def send(message: Any) -> None:
        nonlocal sent
        await asyncio.sleep(0.02)  # all together it takes many times the patience
        sent += message.get("body", b"")

    client = SlowClient()
    await asyncio.wait_for(response({"type": "http"}, client.receive, send), 20)
    assert sent.endswith(b"data: [DONE]\n\n")


async def test_a_relayed_stream_waits_for_its_client_too() -> None:
    read = 0

    class Relayed:
        headers: ClassVar[dict[str, str]] = {}
        body = None

        @property
        async def frames(self) -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(1000):
                read += 1
                yield b"data: {}\n\n"

    class Upstream(MemoryUpstream):
        @asynccontextmanager
        async def relay(self, *args: Any, **options: Any) -> AsyncIterator[Relayed]:
            yield Relayed()

    relayed = plan(mode=Mode.OFF)
    response = RelayResponse(
        Upstream(lambda prefix: []),
        relayed,
        observer=Observer(),
        opening=relayed.opening(relayed.request),
        request_id="r",
        headers=dict,
        count_error=lambda error: None,
        shape=CHAT.shape,
    )
    client = SlowClient()
    task = asyncio.create_task(response({"type": "http"}, client.receive, client.send))
    await asyncio.wait_for(client.waiting.wait(), 5)
    assert await settled(lambda: read) == 1
    client.taken.set()
    await asyncio.wait_for(task, 5)
    assert read == 1000


async def test_the_servers_stopping_ends_open_streams_validly() -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "a"}], "stream": True}
    upstream = ScriptedUpstream(Script((Rule(REPLY, fault=Fault(stall=6)),)))
    received = b""
    async with serve(upstream) as behind:
        app = create_app(settings(behind, upstream={"timeouts": {}}), aligner=FunctionAligner())
        config = uvicorn.Config(
            app, log_level="critical", access_log=False, ws="none", timeout_graceful_shutdown=0
        )
        server = uvicorn.Server(config)
        server.capture_signals = nullcontext  # type: ignore[method-assign]
        listener = socket.create_server(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            httpx.AsyncClient(base_url=address) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            async for data in response.aiter_raw():
                received += data
                server.should_exit = True
        await task
        listener.close()
        await upstream.until(lambda u: u.running == 0)
    frames = parse_frames(received.decode())
    assert frames[-1] == "[DONE]"
    assert frames[-2]["error"]["code"] == "overloaded"
