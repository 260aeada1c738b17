"""The whole proxy in front of the native APIs: the client speaks OpenAI's all the same."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.ports import Aligner
from tests.api.proxy import error_of, replacing, settings
from tests.fakes import FunctionAligner
from tests.servers import serve
from tests.upstream.emulators.writer import REPLY, Writer, count
from tests.upstream.test_native import BASES, KEYS, MODELS, NATIVE, NOW, THINKS, emulator
from tests.upstream.test_wires import ADD

pytestmark = pytest.mark.anyio

MODES = ("stream", "off")
QUESTION: Any = [{"role": "user", "content": "How many?"}]


@asynccontextmanager
async def proxied(
    dialect: str, aligner: Aligner | None = None, **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Writer]]:
    behind = emulator(dialect, **options)
    async with serve(behind) as address:
        upstream = {
            "base_url": f"{address}{BASES[dialect]}",
            "dialect": dialect,
            "api_key": KEYS[dialect],
        }
        app = create_app(settings(address, upstream=upstream), aligner=aligner or FunctionAligner())
        async with (
            serve(app) as front,
            openai.AsyncOpenAI(base_url=f"{front}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client, behind


async def ask(client: openai.AsyncOpenAI, dialect: str, mode: str, **fields: Any) -> Any:
    extra = {"stream_aligner": {"mode": mode}} | fields.pop("extra", {})
    model = MODELS[dialect]
    asked = {"model": model, "messages": QUESTION, "extra_body": extra} | fields
    return await client.chat.completions.create(**asked)


async def ask_and_read(
    client: openai.AsyncOpenAI, dialect: str, mode: str, into: list[str]
) -> None:
    async for chunk in await ask(client, dialect, mode, stream=True):
        into.append(chunk.choices[0].delta.content or "")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", NATIVE)
async def test_streamed_and_whole_replies_are_openais(dialect: str, mode: str) -> None:
    async with proxied(dialect) as (client, _):
        whole = await ask(client, dialect, mode)
        stream = await ask(
            client, dialect, mode, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].message.content == REPLY
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == count(REPLY)
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == REPLY
    assert deltas[-1].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("dialect", NATIVE)
async def test_a_corrected_sentence_is_continued_by_the_upstream(dialect: str) -> None:
    aligner = replacing(eats="She gives one away.")
    async with proxied(dialect, aligner) as (client, behind):
        whole = await ask(client, dialect, "stream")
        await behind.until_idle()
    expected = REPLY.replace("She eats one of them.", "She gives one away.")
    assert whole.choices[0].message.content == expected
    assert whole.stream_aligner["continuation"] == "prefill"
    assert len(behind.requests) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", NATIVE)
async def test_tool_calls_and_reasoning_reach_the_client(dialect: str, mode: str) -> None:
    async with proxied(dialect) as (client, _):
        called = await ask(client, dialect, mode, tools=[ADD, NOW])
        thought = await ask(client, dialect, mode, extra=THINKS[dialect])
    calls = called.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["add", "now"]
    assert called.choices[0].message.content is None
    assert called.choices[0].finish_reason == "tool_calls"
    assert thought.choices[0].message.reasoning_content == "Let me count."
    assert thought.choices[0].message.content == REPLY


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", NATIVE)
async def test_errors_are_openais_before_and_within_a_stream(dialect: str, mode: str) -> None:
    async with proxied(dialect, fault="overloaded") as (client, _):
        with pytest.raises(openai.APIStatusError) as before:
            await ask(client, dialect, mode, stream=True)
    assert before.value.status_code == {"anthropic": 529, "gemini": 429}[dialect]
    assert before.value.response.headers["retry-after"] == "7"
    got: list[str] = []
    async with proxied(dialect, fault="overloaded within") as (client, _):
        with pytest.raises(openai.APIError, match="verloaded"):
            await ask_and_read(client, dialect, mode, got)
    # Nothing unreviewed was delivered.
    assert "".join(got) == ("Anna has 3" if mode == "off" else "")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dialect", NATIVE)
async def test_what_the_upstream_cannot_be_asked_is_the_clients_400(
    dialect: str, mode: str
) -> None:
    async with proxied(dialect) as (client, behind):
        async with httpx.AsyncClient() as plain:
            body = {"model": MODELS[dialect], "messages": QUESTION, "echo": True}
            body["stream_aligner"] = {"mode": mode}
            refused = await plain.post(f"{client.base_url}chat/completions", json=body)
        assert not behind.requests
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "echo"


@pytest.mark.parametrize("dialect", NATIVE)
async def test_mode_off_says_so_and_counts_so(dialect: str) -> None:
    async with proxied(dialect) as (client, _), httpx.AsyncClient() as plain:
        body = {"model": MODELS[dialect], "messages": QUESTION}
        body["stream_aligner"] = {"mode": "off", "provenance": True}
        answer = await plain.post(f"{client.base_url}chat/completions", json=body)
        metrics = await plain.get(f"{client.base_url}".removesuffix("v1/") + "metrics")
    assert answer.headers["x-stream-aligner-mode"] == "off"
    assert "stream_aligner" not in answer.json()
    assert 'mode="off"' in metrics.text


@pytest.mark.parametrize("dialect", NATIVE)
async def test_leaving_in_mode_off_stops_the_upstream(dialect: str) -> None:
    async with proxied(dialect, fault="hangs") as (client, behind):
        stream = await ask(client, dialect, "off", stream=True)
        await anext(aiter(stream))
        assert behind.running == 1
        await stream.close()
        await behind.until_idle()


@pytest.mark.parametrize("dialect", NATIVE)
async def test_the_models_are_listed(dialect: str) -> None:
    async with proxied(dialect) as (client, _):
        names = [model.id async for model in await client.models.list()]
    assert MODELS[dialect] in names
