"""Text completions below the proxy: who writes on a prompt, and who is asked it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stream_aligner_proxy.core.errors import UpstreamRejected
from stream_aligner_proxy.core.records import ChatRequest, Turn
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.upstream.bodies import as_chat, choices_of, prompt_body
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.dialects import DIALECTS
from tests.servers import serve
from tests.upstream.completing import CompletingServer
from tests.upstream.test_client import LONG, collect, text

PROMPT = "Once upon a time"


class Chatting(ScriptedUpstream):
    """Has no `/completions`; counts how often it was asked there."""

    asked_in_vain = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked_in_vain += scope.get("path") == "/v1/completions"
        await super().__call__(scope, receive, send)


def asked(**fields: Any) -> ChatRequest:
    body = {"model": "scripted", "prompt": PROMPT, **fields}
    return ChatRequest("scripted", body, (Turn("user", PROMPT),))


@asynccontextmanager
async def chatting(*rules: Rule, **options: Any) -> AsyncIterator[tuple[HttpUpstream, Chatting]]:
    app = Chatting(Script(rules or (Rule("It was."),)))
    async with serve(app) as address:
        upstream = HttpUpstream("main", f"{address}/v1", "generic", timeouts=LONG, **options)
        try:
            yield upstream, app
        finally:
            await upstream.aclose()


@pytest.mark.anyio
async def test_that_an_upstream_only_chats_is_found_out_once() -> None:
    async with chatting() as (upstream, app):
        assert upstream.completes(asked())
        assert not upstream.continuation(asked()).sure
        for _ in range(3):
            assert text(await collect(upstream, asked())) == "It was."
        assert app.asked_in_vain == 1
        assert not upstream.completes(asked())
        assert upstream.continuation(asked()).way == "prefill"
    assert [request.body["messages"][0]["content"] for request in app.requests] == [PROMPT] * 3


@pytest.mark.anyio
async def test_a_model_that_does_not_exist_says_nothing_of_the_upstream() -> None:
    gone = Rule(fault=Fault(status=404, body={"error": {"message": "no such model"}}))
    async with chatting(gone) as (upstream, _):
        with pytest.raises(UpstreamRejected, match="no such model"):
            await collect(upstream, asked())
        assert upstream.completes(asked())


@pytest.mark.anyio
async def test_what_was_written_on_once_is_sure_to_be_written_on_again() -> None:
    async with CompletingServer.running("there was a bear.") as (server, address):
        upstream = HttpUpstream("main", f"{address}/v1", "generic", timeouts=LONG)
        await collect(upstream, asked())
        found = upstream.continuation(asked())
        assert (found.way, found.sure) == ("prompt", True)
        assert text(await collect(upstream, asked(min_tokens=9), prefix=" long ago", max_tokens=5))
        await upstream.aclose()
    assert server.bodies[1]["prompt"] == PROMPT + " long ago"
    assert server.bodies[1]["max_tokens"] == 5
    assert "min_tokens" not in server.bodies[1]


@pytest.mark.anyio
async def test_the_operator_may_forbid_to_continue_and_the_prompt_is_still_written_on() -> None:
    async with CompletingServer.running("there was a bear.") as (server, address):
        upstream = HttpUpstream(
            "main", f"{address}/v1", "vllm", continuation="rewrite-only", timeouts=LONG
        )
        assert not upstream.continuation(asked()).possible
        await collect(upstream, asked())
        await upstream.aclose()
    assert server.bodies[0]["prompt"] == PROMPT


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_the_bodies_are_the_clients_but_for_the_prompt(dialect: Any) -> None:
    body = {"model": "m", "prompt": PROMPT, "top_k": 3, "max_tokens": 9}
    sent = prompt_body(body, dialect, prefix=" a", max_tokens=4)
    assert {k: v for k, v in sent.items() if k not in ("stream", "stream_options")} == {
        **body,
        "prompt": PROMPT + " a",
        "max_tokens": 4,
    }
    said = [{"role": "user", "content": PROMPT}]
    assert as_chat(body) == {"model": "m", "messages": said, "top_k": 3, "max_tokens": 9}


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2]], "n": 2}, 4),
        ({"messages": [], "n": 2}, 2),
        ({"messages": [], "prompt": ["a", "b"]}, 1),
        ({"n": None}, 1),
    ],
)
def test_how_many_replies_are_asked_for(body: dict[str, Any], choices: int) -> None:
    assert choices_of(body) == choices
