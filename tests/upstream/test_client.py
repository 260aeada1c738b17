"""The upstream client over real HTTP, against the scripted upstream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from stream_aligner_proxy.core.errors import (
    ConfigError,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.records import ChatRequest, Chunk
from stream_aligner_proxy.demo.script import Chunking, Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from tests.servers import refused_address, serve, serve_in_thread

pytestmark = pytest.mark.anyio

REPLY = "Anna has 3 apples. She eats one. So 2 are left."
# For an upstream that the test knows to be silent.
SHORT = Timeouts(connect=2, first_byte=0.8, between_chunks=0.8, total=5, ping=0.8)
# For what must not run out of time, however busy the machine.
LONG = Timeouts(connect=10, first_byte=20, between_chunks=20, total=60, ping=10)


def chat(text: str = "How many?", **extra: Any) -> ChatRequest:
    headers = extra.pop("headers", {})
    body = {"model": "scripted", "messages": [{"role": "user", "content": text}], **extra}
    return ChatRequest("scripted", body, (), headers=headers, request_id="req-1")


@asynccontextmanager
async def scripted(
    *rules: Rule, dialect: str = "vllm", timeouts: Timeouts = LONG, **settings: Any
) -> AsyncIterator[tuple[HttpUpstream, ScriptedUpstream]]:
    options = {k: settings.pop(k) for k in ("api_key",) if k in settings}
    app = ScriptedUpstream(Script(rules or (Rule(REPLY),), **settings))
    async with serve(app) as address:
        upstream = HttpUpstream("main", f"{address}/v1", dialect, timeouts=timeouts, **options)
        try:
            yield upstream, app
        finally:
            await upstream.aclose()


async def collect(
    upstream: HttpUpstream, request: ChatRequest, into: list[Chunk] | None = None, **options: Any
) -> list[Chunk]:
    """All chunks of a branch; `into` keeps those before an error."""
    got = [] if into is None else into
    async with upstream.open(request, **options) as chunks:
        async for chunk in chunks:
            got.append(chunk)
    return got


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("again", [None, 0, 1, 2])
async def test_branches_cancelled_at_any_moment_give_their_places_back(again: int | None) -> None:
    """Cancelled once, or `again` some steps later. A place lost for ever is a leak."""
    places = 4
    app = ScriptedUpstream(Script((Rule(REPLY),)))
    async with serve(app) as address:
        for steps in range(0, 60, 2 if again is None else 5):
            # A new one, so that connecting is among the moments.
            upstream = HttpUpstream("main", f"{address}/v1", timeouts=LONG, max_connections=places)
            tasks = [asyncio.create_task(collect(upstream, chat())) for _ in range(places)]
            for pause in (steps, again):
                for _ in range(pause or 0):
                    await anyio.lowlevel.checkpoint()
                if pause is not None:
                    for task in tasks:
                        task.cancel()
            await asyncio.wait(tasks)
            replies = await asyncio.gather(*(collect(upstream, chat()) for _ in range(places)))
            assert [text(reply) for reply in replies] == [REPLY] * places, f"after {steps} steps"
            await upstream.aclose()
        await app.until(lambda a: a.running == 0)


async def test_a_branch_gives_the_text_the_finish_reason_and_the_usage() -> None:
    async with scripted() as (upstream, app):
        chunks = await collect(upstream, chat())
    assert text(chunks) == REPLY
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == sum(c.tokens for c in chunks) > 5
    assert usage.details == {"total_tokens": usage.prompt_tokens + usage.completion_tokens}
    sent = app.requests[0]
    assert sent.body["stream"] is True
    assert sent.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert sent.left_at is None


async def test_without_a_running_count_each_delta_counts_one_token() -> None:
    async with scripted(dialect="llamacpp") as (upstream, _):
        chunks = await collect(upstream, chat())
    assert all(chunk.tokens == 1 for chunk in chunks if chunk.text)


async def test_continuing_sends_the_prefix_last_and_keeps_the_leading_space() -> None:
    async with scripted() as (upstream, app):
        prefix = "Anna has 3 apples."
        chunks = await collect(upstream, chat(), prefix=prefix, max_tokens=50)
    assert text(chunks) == REPLY[len(prefix) :]
    assert text(chunks).startswith(" ")
    body = app.requests[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": prefix}
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["max_tokens"] == 50


@pytest.mark.parametrize("chunk", [Chunking("characters"), Chunking("words", 50)])
async def test_a_repeated_prefix_is_dropped_however_it_is_cut(chunk: Chunking) -> None:
    async with scripted(dialect="mistral", prefill="repeats", chunk=chunk) as (upstream, app):
        chunks = await collect(upstream, chat(), prefix="Anna has 3 apples.")
    assert text(chunks) == " She eats one. So 2 are left."
    assert "stream_options" not in app.requests[0].body


async def test_what_is_not_the_prefix_is_passed_on_where_a_prefix_is_expected() -> None:
    async with scripted(dialect="mistral", prefill="continues") as (upstream, _):
        chunks = await collect(upstream, chat(), prefix="Anna has 3 apples.")
    assert text(chunks) == " She eats one. So 2 are left."


async def test_reasoning_and_tool_calls_come_as_parts_in_order() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    async with scripted(Rule("Hi.", reasoning="hm", tool_calls=[call])) as (upstream, _):
        chunks = await collect(upstream, chat())
    seen = [dict(chunk.part) if chunk.part else chunk.text for chunk in chunks]
    assert [s for s in seen if s] == [
        {"reasoning_content": "hm"},
        "Hi.",
        {"tool_calls": [{"index": 0, **call}]},
    ]


async def test_a_server_that_ignores_stream_gives_one_chunk() -> None:
    async with scripted(Rule(REPLY, fault=Fault(json_answer=True))) as (upstream, _):
        chunks = await collect(upstream, chat())
    said = [(c.text, c.finish_reason) for c in chunks if c.about is None]
    assert said == [(REPLY, "stop")]
    assert chunks[-1].usage is not None
    [whole] = [c for c in chunks if c.about is None]
    assert whole.usage is not None
    assert whole.tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("fault", [Fault(done=False), Fault(newline="\r\n"), Fault(newline="\r")])
async def test_a_missing_done_and_other_line_ends_do_no_harm(fault: Fault) -> None:
    async with scripted(Rule(REPLY, fault=fault)) as (upstream, _):
        assert text(await collect(upstream, chat())) == REPLY


async def test_a_reply_is_complete_with_its_finish_reason_even_if_the_server_lingers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream_aligner_proxy.upstream.streams._AFTER_FINISH_SECONDS", 0.1)
    patient = Timeouts(between_chunks=60)
    async with scripted(Rule(REPLY, fault=Fault(linger=True)), timeouts=patient) as (upstream, app):
        assert text(await collect(upstream, chat())) == REPLY
        await app.until(lambda a: a.running == 0)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (Fault(stall="headers"), UpstreamTimeout, "did not answer in time"),
        (Fault(stall="first"), UpstreamTimeout, "stopped sending"),
        (Fault(stall=2), UpstreamTimeout, "stopped sending"),
        (Fault(reset=2), UpstreamError, "broke off|was lost"),
        (Fault(finish=False), UpstreamGarbled, "ended before"),
        (Fault(finish=False, done=False), UpstreamGarbled, "ended before"),
        (Fault(garbage_after=2), UpstreamGarbled, "invalid JSON"),
        (Fault(garbage_after=2, garbage="data: [1]\n\n"), UpstreamGarbled, "not an object"),
        (Fault(garbage_after=2, garbage="data: {}\n\n"), UpstreamGarbled, "not a chat chunk"),
        (
            Fault(garbage_after=2, garbage='data: {"choices":[{"index":1,"delta":{}}]}\n\n'),
            UpstreamGarbled,
            "not asked for",
        ),
        (Fault(error_after=2), UpstreamRejected, "scripted error"),
        (Fault(error_after=2, error="plain"), UpstreamRejected, "plain"),
    ],
)
async def test_faults_are_errors_after_what_was_sent_before_them(
    fault: Fault, error: type[UpstreamError], words: str
) -> None:
    timeouts = SHORT if fault.stall is not None else LONG
    async with scripted(Rule(REPLY, fault=fault), timeouts=timeouts) as (upstream, app):
        got: list[Chunk] = []
        with pytest.raises(error, match=words):
            await collect(upstream, chat(), into=got)
        await app.until(lambda a: a.running == 0)
    assert REPLY.startswith(text(got))
    if fault.stall not in ("headers", "first") and fault.finish:
        assert text(got) == "Anna has"


async def test_the_total_limit_holds_for_an_upstream_that_never_pauses() -> None:
    slow = Timeouts(connect=1, first_byte=1, between_chunks=1, total=0.3)
    async with scripted(pace=0.05, timeouts=slow) as (upstream, _):
        with pytest.raises(UpstreamTimeout):
            await collect(upstream, chat("x", max_tokens=100))


async def test_nothing_listening_is_unreachable_and_the_address_stays_unsaid() -> None:
    address = refused_address()
    upstream = HttpUpstream("main", address.replace("//", "//user:hunter2@"), timeouts=SHORT)
    with pytest.raises(UpstreamUnreachable) as caught:
        await collect(upstream, chat())
    assert "hunter2" not in str(caught.value) + repr(caught.value) + repr(upstream)
    assert address.rpartition(":")[2] not in str(caught.value)
    with pytest.raises(UpstreamUnreachable):
        await upstream.ping()
    await upstream.aclose()


@pytest.mark.parametrize("fault", [Fault(stall="headers"), Fault(stall="first"), Fault(stall=2)])
async def test_cancelling_closes_the_connection_at_once(fault: Fault) -> None:
    patient = Timeouts(first_byte=60, between_chunks=60)
    async with scripted(Rule(REPLY, fault=fault), timeouts=patient) as (upstream, app):
        task = asyncio.create_task(collect(upstream, chat()))
        await app.until(lambda a: a.running == 1)
        if fault.stall == 2:
            await app.until(lambda a: a.requests[0].sent == "Anna has")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.until(lambda a: a.running == 0)
        assert app.requests[0].left_at is not None


async def test_a_cancelled_scope_closes_the_connection_and_leaves_no_task() -> None:
    app = ScriptedUpstream(Script([Rule(REPLY, fault=Fault(stall=2))]))
    with serve_in_thread(app) as address:  # so that all tasks of this loop are the client's
        upstream = HttpUpstream("main", f"{address}/v1")
        before = asyncio.all_tasks()
        with anyio.move_on_after(0.2):  # cancels every await inside, also those that clean up
            await collect(upstream, chat())
        await anyio.lowlevel.checkpoint()
        assert asyncio.all_tasks() == before
        await app.until(lambda a: a.opened == 1 and a.running == 0)
        await upstream.aclose()


async def test_a_scope_cancelled_between_two_reads_closes_the_connection_too() -> None:
    async with scripted(Rule(REPLY, fault=Fault(stall=2))) as (upstream, app):
        with anyio.CancelScope() as scope:
            async with upstream.open(chat()) as chunks:
                await anext(chunks)
                scope.cancel()
                await anyio.sleep_forever()  # as a reader that back-pressure holds
        await app.until(lambda a: a.running == 0)


async def test_leaving_in_the_middle_closes_the_connection_at_once() -> None:
    async with scripted(Rule(REPLY, fault=Fault(stall=3))) as (upstream, app):
        async with upstream.open(chat()) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    break
        await app.until(lambda a: a.running == 0)
        assert app.requests[0].left_at is not None


async def test_a_connection_is_used_again_after_a_whole_branch_and_never_after_a_cut_one() -> None:
    app = ScriptedUpstream(Script((Rule("Cut.", when="cut", fault=Fault(stall=1)), Rule(REPLY))))
    ports: list[int] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            ports.append(scope["client"][1])
        await app(scope, receive, send)

    async with serve(noting) as address:
        upstream = HttpUpstream("main", f"{address}/v1", "vllm", timeouts=LONG)
        for question in ("one", "two", "cut", "three", "four"):
            async with upstream.open(chat(question)) as chunks:
                async for _ in chunks:
                    if question == "cut":
                        break
        await upstream.aclose()
    one, two, cut, three, four = ports
    assert one == two == cut != three == four


async def test_a_busy_pool_is_an_overload() -> None:
    async with scripted(Rule(REPLY, fault=Fault(stall=1))) as (_, app), serve(app) as address:
        quick = Timeouts(connect=0.2)
        upstream = HttpUpstream("main", f"{address}/v1", timeouts=quick, max_connections=1)
        async with upstream.open(chat()):
            with pytest.raises(UpstreamError, match="in use") as caught:
                await collect(upstream, chat())
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        await upstream.aclose()


async def test_models_and_ping_answer_from_the_list_of_models() -> None:
    async with scripted() as (upstream, _):
        assert [model["id"] for model in await upstream.models()] == ["scripted"]
        await upstream.ping()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ftp://h/v1", "http"),
        ("http://127.0.0.1:99999/v1", "port"),
        ("http://127.0.0.1:0/v1", "port"),
        ("http://*/v1", "host"),
        ("http://a..b/v1", "host"),
        ("http://h/v1/chat/completions", "base"),
    ],
)
async def test_an_address_that_cannot_work_is_refused_by_its_key(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"upstreams\.main\.base_url: .*{why}"):
        HttpUpstream("main", address)


@pytest.mark.parametrize("host", ["h", "my_host:8000", "a.b-c.example", "[::1]:80", "10.0.0.1"])
async def test_an_address_that_may_work_is_taken(host: str) -> None:
    HttpUpstream("main", f"http://{host}/v1/")
