"""The native APIs over real HTTP, against their emulators."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stream_aligner_proxy.core.errors import UpstreamRejected
from stream_aligner_proxy.core.records import ChatRequest, Chunk
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from tests.servers import serve
from tests.upstream.emulators import anthropic, gemini
from tests.upstream.emulators.anthropic import AnthropicEmulator
from tests.upstream.emulators.gemini import GeminiEmulator
from tests.upstream.emulators.writer import REPLY, Writer, count
from tests.upstream.test_wires import ADD

pytestmark = pytest.mark.anyio

NATIVE = ("anthropic", "gemini")
TIMEOUTS = Timeouts(connect=1, first_byte=5, between_chunks=5, total=20, ping=5)
MODELS = {"anthropic": anthropic.CLAUDE, "gemini": gemini.GEMINI}
NEWER = {"anthropic": anthropic.NEWER, "gemini": gemini.NEWER}
KEYS = {"anthropic": anthropic.KEY, "gemini": gemini.KEY}
BASES = {"anthropic": "/v1", "gemini": "/v1beta"}
NOW = {"type": "function", "function": {"name": "now"}}


def emulator(dialect: str, **options: Any) -> Writer:
    kinds: dict[str, type[Writer]] = {"anthropic": AnthropicEmulator, "gemini": GeminiEmulator}
    return kinds[dialect](**options)


@asynccontextmanager
async def native(
    dialect: str, *, api_key: str | None = "", **options: Any
) -> AsyncIterator[tuple[HttpUpstream, Writer]]:
    app = emulator(dialect, **options)
    key = KEYS[dialect] if api_key == "" else api_key
    async with serve(app) as address:
        base = f"{address}{BASES[dialect]}"
        upstream = HttpUpstream("main", base, dialect, api_key=key, timeouts=TIMEOUTS)
        try:
            yield upstream, app
        finally:
            await upstream.aclose()


def chat(dialect: str, question: str = "How many?", **fields: Any) -> ChatRequest:
    headers = fields.pop("headers", {})
    body = {"model": MODELS[dialect], "messages": [{"role": "user", "content": question}], **fields}
    return ChatRequest(body["model"], body, (), headers=headers, request_id="req-1")


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


def parts(chunks: list[Chunk], name: str) -> list[Any]:
    return [chunk.part[name] for chunk in chunks if chunk.part and name in chunk.part]


def finish(chunks: list[Chunk]) -> list[str]:
    return [chunk.finish_reason for chunk in chunks if chunk.finish_reason]


@pytest.mark.parametrize("dialect", NATIVE)
async def test_a_reply_arrives_with_its_tokens_usage_and_end(dialect: str) -> None:
    async with native(dialect) as (upstream, app):
        chunks = await collect(upstream, chat(dialect))
        await app.until_idle()
    assert text(chunks) == REPLY
    assert finish(chunks) == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens == 2
    assert usage.completion_tokens == sum(chunk.tokens for chunk in chunks) == count(REPLY)


@pytest.mark.parametrize("dialect", NATIVE)
async def test_continued_at_any_sentence_the_text_is_that_of_an_uninterrupted_reply(
    dialect: str,
) -> None:
    ends = [found.end() for found in re.finditer(r"[.!?](?=\s|$)", REPLY)]
    assert len(ends) == 4
    async with native(dialect) as (upstream, app):
        assert upstream.continuation(chat(dialect)).way == "prefill"
        for end in ends:
            prefix = REPLY[:end]
            chunks = await collect(upstream, chat(dialect), prefix=prefix)
            assert prefix + text(chunks) == REPLY
            assert finish(chunks) == ["stop"]
        await app.until_idle()


@pytest.mark.parametrize("dialect", NATIVE)
async def test_the_limit_and_the_stops_hold_over_a_continuation(dialect: str) -> None:
    async with native(dialect) as (upstream, _):
        request = chat(dialect, max_tokens=50, stop=["one"])
        first = await collect(upstream, request)
        short = await collect(upstream, request, prefix="Anna has 3 apples.", max_tokens=1)
    assert text(first) == "Anna has 3 apples. She eats"
    assert finish(first) == ["stop"]
    assert text(short).strip() == "She"
    assert finish(short) == ["length"]


@pytest.mark.parametrize("dialect", NATIVE)
async def test_a_model_that_refuses_a_prefill_is_not_asked_and_says_so_when_it_is(
    dialect: str,
) -> None:
    async with native(dialect) as (upstream, _):
        request = chat(dialect, model=NEWER[dialect], temperature=0.5)
        assert upstream.continuation(request).way == "instruct"
        assert text(await collect(upstream, request)) == REPLY
        with pytest.raises(UpstreamRejected) as caught:
            async with upstream.prefilled(request, "Anna has 3 apples.", 50):
                pass
    assert caught.value.status == 400
    assert not caught.value.transient


@pytest.mark.parametrize("dialect", NATIVE)
async def test_tool_calls_come_in_openais_pieces(dialect: str) -> None:
    async with native(dialect) as (upstream, app):
        chunks = await collect(upstream, chat(dialect, tools=[ADD, NOW]))
        calls: dict[int, dict[str, str]] = {}
        for piece in (piece for call in parts(chunks, "tool_calls") for piece in call):
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id", "")
            for name, value in piece["function"].items():
                call[name] += value
        assert finish(chunks) == ["tool_calls"]
        assert [call["name"] for call in calls.values()] == ["add", "now"]
        assert [call["arguments"].replace(" ", "") for call in calls.values()] == ['{"a":1}', "{}"]
        assert len({call["id"] for call in calls.values()} - {""}) == 2

        told = [
            {
                "id": c["id"],
                "type": "function",
                "function": {k: c[k] for k in ("name", "arguments")},
            }
            for c in calls.values()
        ]
        history = [
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": None, "tool_calls": told},
            *({"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in told),
        ]
        chunks = await collect(upstream, chat(dialect, tools=[ADD, NOW], messages=history))
        assert text(chunks) == REPLY
        assert len(app.requests) == 2


THINKS = {
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "gemini": {"reasoning_effort": "low"},
}


@pytest.mark.parametrize("dialect", NATIVE)
async def test_thinking_comes_before_the_text_and_not_in_a_continuation(dialect: str) -> None:
    async with native(dialect) as (upstream, app):
        chunks = await collect(upstream, chat(dialect, **THINKS[dialect]))
        first_text = next(i for i, chunk in enumerate(chunks) if chunk.text)
        thought = "".join(parts(chunks[:first_text], "reasoning_content"))
        assert thought == "Let me count."
        assert text(chunks) == REPLY
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens == count(REPLY) + 4
        if dialect == "gemini":
            assert usage.details["completion_tokens_details"] == {"reasoning_tokens": 4}

        request = chat(dialect, **THINKS[dialect])
        chunks = await collect(upstream, request, prefix="Anna has 3 apples.")
        assert not parts(chunks, "reasoning_content")
        assert text(chunks) == REPLY.removeprefix("Anna has 3 apples.")
        assert len(app.requests) == 2


async def test_claudes_signed_thinking_goes_back_with_the_message_that_it_came_with() -> None:
    async with native("anthropic") as (upstream, app):
        chunks = await collect(upstream, chat("anthropic", **THINKS["anthropic"]))
        blocks = [block for blocks in parts(chunks, "thinking_blocks") for block in blocks]
        history = [
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "Two.", "thinking_blocks": blocks},
            {"role": "user", "content": "Sure?"},
        ]
        await collect(upstream, chat("anthropic", messages=history))
    signed = {"type": "thinking", "thinking": "Let me count.", "signature": "EqQB"}
    assert app.requests[1]["messages"][1]["content"][0] == signed


@pytest.mark.parametrize("dialect", NATIVE)
async def test_an_overload_before_the_first_byte_says_when_to_come_back(dialect: str) -> None:
    async with native(dialect, fault="overloaded") as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat(dialect))
    error = caught.value
    assert error.status == {"anthropic": 529, "gemini": 429}[dialect]
    assert error.transient
    assert error.headers["retry-after"] == "7"
    if dialect == "anthropic":
        assert error.headers["x-request-id"] == "req_emulated"
        assert error.type == "overloaded_error"
    else:
        assert error.type == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("dialect", NATIVE)
async def test_an_overload_in_the_middle_comes_after_the_text_before_it(dialect: str) -> None:
    got: list[Chunk] = []
    async with native(dialect, fault="overloaded within") as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat(dialect), got)
    assert text(got) == "Anna has 3"
    assert caught.value.status == {"anthropic": 529, "gemini": 503}[dialect]
    assert caught.value.transient


@pytest.mark.parametrize("dialect", NATIVE)
async def test_leaving_a_branch_stops_the_upstream(dialect: str) -> None:
    async with native(dialect, fault="hangs") as (upstream, app):
        async with upstream.open(chat(dialect)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    break
            assert app.running == 1
        await app.until_idle()


@pytest.mark.parametrize("dialect", NATIVE)
async def test_a_refused_key_of_the_proxys_is_the_operators_business(dialect: str) -> None:
    async with native(dialect, api_key="a-wrong-key") as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat(dialect))
    assert (caught.value.status, caught.value.code) == (502, "upstream_credentials")
    assert "a-wrong-key" not in caught.value.message


@pytest.mark.parametrize("dialect", NATIVE)
async def test_without_a_key_of_its_own_the_proxy_sends_the_clients_where_it_belongs(
    dialect: str,
) -> None:
    headers = {"authorization": f"Bearer {KEYS[dialect]}"}
    async with native(dialect, api_key=None) as (upstream, app):
        assert text(await collect(upstream, chat(dialect, headers=headers))) == REPLY
        assert "authorization" not in app.headers[0]
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat(dialect))
    assert caught.value.status in (401, 403)


@pytest.mark.parametrize("dialect", NATIVE)
async def test_the_models_are_listed_by_the_names_that_requests_use(dialect: str) -> None:
    async with native(dialect) as (upstream, _):
        await upstream.ping()
        names = [model["id"] for model in await upstream.models()]
    assert names == [MODELS[dialect], NEWER[dialect]]


async def test_a_prompt_that_gemini_blocks_ends_filtered_without_text() -> None:
    async with native("gemini") as (upstream, _):
        chunks = await collect(upstream, chat("gemini", "a forbidden question"))
        recited = await collect(upstream, chat("gemini", "recite a poem"))
    assert (text(chunks), finish(chunks)) == ("", ["content_filter"])
    assert (text(recited), finish(recited)) == (REPLY, ["content_filter"])


async def test_a_model_that_gemini_does_not_know_is_the_clients_404() -> None:
    async with native("gemini") as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat("gemini", model="gemini-0"))
    assert (caught.value.status, caught.value.type) == (404, "NOT_FOUND")
