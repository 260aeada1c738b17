"""Every dialect against a server that behaves as the real one is known to.

The same things are asked of all: the reply as it is, the reply joined from continuations at every
sentence, what a probe finds, and that no secret is told.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from stream_aligner_proxy.core.errors import (
    ConfigError,
    ContinuationFailed,
    UpstreamError,
    UpstreamRejected,
)
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.dialects import DIALECTS
from tests.servers import serve
from tests.upstream.emulators.chat import KINDS, ChatEmulator, Kind, always
from tests.upstream.emulators.writer import REPLY

pytestmark = pytest.mark.anyio

KEY = "secret-key-of-the-proxy"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
# Where the reply ends its sentences: what a loop would continue from.
CUTS = [REPLY[: REPLY.index(end) + len(end)] for end in ("apples.", "of them.", "are left.")]
# What a probe finds, and the way that is taken then.
FOUND = {
    "vllm": ("continues", "prefill"),
    "sglang": ("continues", "prefill"),
    "llamacpp": ("continues", "prefill"),
    "ollama": ("continues", "prefill"),
    "tgi": ("continues", "prefill"),
    "lmstudio": ("restarts", "instruct"),
    "transformers": ("restarts", "instruct"),
    "deepseek": ("continues", "prefill"),
    "mistral": ("repeats", "prefill"),
    "kimi": ("continues", "prefill"),
    "qwen": ("continues", "prefill"),
    "openrouter": ("restarts", "instruct"),
    "groq": ("continues", "prefill"),
    "together": ("restarts", "instruct"),
    "fireworks": ("continues", "prefill"),
    "gemini-openai": ("rejects", "instruct"),
    "bedrock": ("restarts", "instruct"),
    "azure": ("restarts", "instruct"),
    "openai": ("restarts", "instruct"),
    "generic": ("continues", "prefill"),
}


def test_every_dialect_has_a_server_here_or_a_wire_of_its_own():
    assert set(KINDS) == {name for name, dialect in DIALECTS.items() if dialect.wire is None}
    assert set(FOUND) == set(KINDS)


@asynccontextmanager
async def upstream_of(
    dialect: str, kind: Kind | None = None, **options: Any
) -> AsyncIterator[tuple[HttpUpstream, ChatEmulator]]:
    app = ChatEmulator(kind or KINDS[dialect])
    options = {"api_key": KEY, **options}
    async with serve(app) as address:
        upstream = HttpUpstream(
            "main", f"{address}{app.kind.path}", dialect, query=app.kind.query, **options
        )
        try:
            yield upstream, app
        finally:
            await upstream.aclose()


def chat(**extra: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "How many?"}], **extra}
    return ChatRequest("m", body, (), headers={"x-unknown": "1"})


async def text(upstream: HttpUpstream, request: ChatRequest, **options: Any) -> str:
    async with upstream.open(request, **options) as chunks:
        return "".join([chunk.text async for chunk in chunks])


@pytest.mark.parametrize("dialect", KINDS)
async def test_a_reply_comes_as_it_is_with_its_usage(dialect: str) -> None:
    async with (
        upstream_of(dialect) as (upstream, _),
        upstream.open(chat(temperature=0)) as chunks,
    ):
        got = [chunk async for chunk in chunks]
    assert "".join(chunk.text for chunk in got) == REPLY
    assert [chunk.finish_reason for chunk in got if chunk.finish_reason] == ["stop"]
    assert got[-1].usage is not None
    assert got[-1].usage.completion_tokens == sum(chunk.tokens for chunk in got)


@pytest.mark.parametrize("probed", [False, True], ids=["unprobed", "probed"])
@pytest.mark.parametrize("dialect", KINDS)
async def test_continuations_at_every_sentence_join_to_the_reply(
    dialect: str, probed: bool
) -> None:
    async with upstream_of(dialect) as (upstream, _):
        if probed:
            await upstream.probe("m")
        for prefix in CUTS:
            assert prefix + await text(upstream, chat(), prefix=prefix) == REPLY
        # A corrected sentence, which the model itself would not have written.
        corrected = "Anna has 4 apples."
        try:
            rest = await text(upstream, chat(), prefix=corrected)
        except ContinuationFailed:
            # It was not known yet that partial messages begin a new answer; now it is.
            assert not probed
            assert upstream.continuation(chat()).way == "instruct"
            rest = await text(upstream, chat(), prefix=corrected)
        assert corrected + rest == REPLY.replace("3", "4")


@pytest.mark.parametrize("dialect", KINDS)
async def test_a_probe_classes_the_upstream_for_a_few_dozen_tokens(dialect: str) -> None:
    found, way = FOUND[dialect]
    async with upstream_of(dialect) as (upstream, app):
        assert await upstream.probe("m") == found
        assert upstream.ways.class_of("m") == found
        assert upstream.continuation(chat()).way == way
        assert upstream.continuation(chat()).sure is (way == "prefill")
        assert app.generated <= 36


@pytest.mark.parametrize("dialect", KINDS)
async def test_errors_are_told_and_no_secret_is(dialect: str) -> None:
    async with upstream_of(dialect, api_key="another-secret-key") as (upstream, _):
        with pytest.raises(UpstreamError) as caught:
            await text(upstream, chat())
    assert caught.value.status == 502
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("told", ["continues", "overlaps", "remarks", "loses the space"])
async def test_told_to_go_on_an_upstream_may_do_so_in_its_own_way(told: str) -> None:
    async with upstream_of("openai", replace(KINDS["openai"], told=told)) as (upstream, _):
        for prefix in CUTS:
            rest = await text(upstream, chat(), prefix=prefix)
            if told in ("remarks", "loses the space"):
                # What it lost cannot be known: one space is the best guess.
                assert (prefix + rest).split() == REPLY.split()
            else:
                assert prefix + rest == REPLY


async def test_told_to_go_on_a_fresh_start_is_no_continuation() -> None:
    async with upstream_of("openai", replace(KINDS["openai"], told="restarts")) as (upstream, _):
        # What it writes again word for word is dropped, and proves nothing.
        assert await text(upstream, chat(), prefix=CUTS[0]) == REPLY.removeprefix(CUTS[0])
        with pytest.raises(ContinuationFailed, match="began its answer again"):
            await text(upstream, chat(), prefix=CUTS[0].replace("3", "4"))
        assert upstream.continuation(chat()).way == "rewrite-only"


async def test_what_refuses_partial_messages_is_told_to_go_on_within_the_same_branch() -> None:
    async with upstream_of("gemini-openai") as (upstream, app):
        assert await text(upstream, chat(), prefix=CUTS[0]) == REPLY.removeprefix(CUTS[0])
        assert len(app.writer.requests) == 2
        await text(upstream, chat(), prefix=CUTS[0])
        assert len(app.writer.requests) == 3  # it is known now


async def test_what_refuses_everything_is_said_to_have_failed() -> None:
    kind = Kind(always("no"), told="no")
    async with upstream_of("generic", kind) as (upstream, _):
        with pytest.raises(ContinuationFailed, match="'main' would not continue") as caught:
            await text(upstream, chat(), prefix=CUTS[0])
        assert not caught.value.transient
        # Perhaps it was this one text: nothing is concluded.
        assert upstream.continuation(chat()).way == "prefill"


async def test_a_limit_of_requests_says_nothing_about_continuing() -> None:
    async with upstream_of("openai", api_key="wrong-key-of-somebody") as (upstream, _):
        with pytest.raises(UpstreamRejected):
            await text(upstream, chat(), prefix=CUTS[0])
        assert upstream.continuation(chat()).way == "instruct"


@pytest.mark.parametrize("way", ["prefill", "instruct", "rewrite-only"])
async def test_the_operator_may_fix_the_way(way: str) -> None:
    async with upstream_of("vllm", continuation=way) as (upstream, _):
        continuation = upstream.continuation(chat())
        assert continuation.way == way
        assert continuation.sure is (way != "instruct")


def test_an_unknown_way_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"upstreams\.main\.continuation: must be one of auto"):
        HttpUpstream("main", "http://h/v1", continuation="prefil")


@pytest.mark.parametrize("dialect", KINDS)
async def test_the_conversation_and_its_settings_survive_a_continuation(dialect: str) -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, PICTURE]},
        {"role": "assistant", "content": "Hi. "},
        {"role": "user", "content": "How many?"},
    ]
    settings = {"temperature": 0.3, "seed": 7, "stop": ["Good"], "presence_penalty": 0.5}
    async with upstream_of(dialect) as (upstream, app):
        await upstream.probe("m")
        rest = await text(
            upstream, chat(messages=history, **settings), prefix=CUTS[0], max_tokens=50
        )
    sent = app.writer.requests[-1]
    assert sent["messages"][: len(history)] == history
    assert {name: sent[name] for name in settings} == settings
    assert sent.get("max_tokens") == 50 or sent.get("max_completion_tokens") == 50
    assert (CUTS[0] + rest).rstrip() == REPLY[: REPLY.index("Good")].rstrip()
