"""Counting tokens by Anthropic's SDK, whatever API the upstream speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.app import create_app
from tests.api.proxy import settings
from tests.fakes import FunctionAligner
from tests.servers import serve

pytestmark = pytest.mark.anyio

# Where each dialect is asked, below its host, and what it answers.
ASKED = {
    "anthropic": ("/v1/messages/count_tokens", {"input_tokens": 17}),
    "gemini": ("/v1beta/models/m:countTokens", {"totalTokens": 17}),
    "vllm": ("/tokenize", {"count": 17, "max_model_len": 4096, "tokens": [1] * 17}),
}
TOOL: Any = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
CONVERSATION: Any = {
    "model": "m",
    "system": "Be brief.",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}],
    "tools": [TOOL],
}


class Counter:
    """A server that counts, and nothing else. `answer`: a status, and what is said with it."""

    def __init__(self, answer: tuple[int, Any]) -> None:
        self._answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        status, said = 200, {"data": [], "models": []}
        if request.method == "POST":
            self.asked.append((request.url.path, await request.json()))
            self.headers = dict(request.headers)
            status, said = self._answer
        await JSONResponse(said, status)(scope, receive, send)


@asynccontextmanager
async def counting(
    dialect: str, answer: tuple[int, Any], key: str = "sk-client", **sections: Any
) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, Counter]]:
    counter = Counter(answer)
    async with serve(counter) as behind:
        base = f"{behind}/{'v1beta' if dialect == 'gemini' else 'v1'}"
        upstream = {"base_url": base, "dialect": dialect, "models": ["m"]}
        app = create_app(settings("", upstream=upstream, **sections), aligner=FunctionAligner())
        async with (
            serve(app) as front,
            anthropic.AsyncAnthropic(base_url=front, api_key=key, max_retries=0) as client,
        ):
            yield client, counter


@pytest.mark.parametrize("dialect", ASKED)
async def test_the_models_own_server_counts(dialect: str) -> None:
    path, answer = ASKED[dialect]
    async with counting(dialect, (200, answer)) as (client, counter):
        own = {"stream_aligner": {"mode": "stream"}}
        told = await client.messages.count_tokens(**CONVERSATION, extra_body=own)
        assert told.input_tokens == 17
        assert "sk-client" in " ".join(counter.headers.values())
    [(asked, body)] = counter.asked
    assert asked == path
    match dialect:
        case "anthropic":
            told_system = [{"type": "text", "text": "Be brief."}]
            assert body == {**CONVERSATION, "system": told_system}
        case "gemini":
            whole = body["generateContentRequest"]
            assert set(whole) == {"model", "contents", "systemInstruction", "tools"}
            assert whole["model"] == "models/m"
        case "vllm":
            assert set(body) == {
                *("model", "messages", "tools", "add_generation_prompt"),
                "continue_final_message",
            }
            assert [message["role"] for message in body["messages"]] == ["system", "user"]
            assert body["add_generation_prompt"] is True


async def test_an_alias_is_counted_by_the_name_that_the_upstream_knows() -> None:
    routes = [{"model": "alias", "to": [{"upstream": "main", "model": "m"}]}]
    async with counting("anthropic", (200, {"input_tokens": 1}), routes=routes) as (client, served):
        await client.messages.count_tokens(**{**CONVERSATION, "model": "alias"})
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(**{**CONVERSATION, "model": "nobody"})
    assert [body["model"] for _, body in served.asked] == ["m"]


@pytest.mark.parametrize(
    ("dialect", "answer", "status", "said"),
    [
        ("openai", (200, {}), 404, "does not count tokens (its API has no way to ask)"),
        ("vllm", (404, {"detail": "Not Found"}), 404, "its /tokenize answered 404"),
        ("vllm", (200, {"tokens": []}), 502, "told no number"),
        ("anthropic", (429, {"error": {"message": "slowly"}}), 429, "slowly"),
    ],
)
async def test_what_is_not_counted_is_told_in_anthropics_words(
    dialect: str, answer: tuple[int, Any], status: int, said: str
) -> None:
    async with counting(dialect, answer) as (client, counter):
        with pytest.raises(anthropic.APIStatusError) as raised:
            await client.messages.count_tokens(**CONVERSATION)
    assert raised.value.status_code == status
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["type"] == "error"
    assert said in raised.value.body["error"]["message"]
    assert len(counter.asked) == (dialect != "openai")


async def test_wrong_requests_and_foreign_models_are_not_sent_on() -> None:
    key = new_key()
    keys = [{"name": "a", "hash": hash_of(key), "models": ["other"]}]
    async with counting("vllm", (200, {}), access={"keys": keys}, key=key) as (client, counter):
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(**CONVERSATION)
        with pytest.raises(anthropic.BadRequestError, match="messages: Field required"):
            await client.post(
                "/v1/messages/count_tokens", body={"model": "other"}, cast_to=httpx.Response
            )
    assert not counter.asked
