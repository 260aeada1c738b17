"""The Messages API over real HTTP, spoken by the official SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import orjson
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import QUESTION, REPLY, Proxy, proxy, replacing, settings
from tests.api.test_messages_blocks import in_order
from tests.fakes import FunctionAligner
from tests.servers import serve
from tests.strict import events
from tests.upstream.emulators.anthropic import CLAUDE, KEY, AnthropicEmulator
from tests.upstream.emulators.writer import REPLY as CLAUDES_REPLY
from tests.upstream.emulators.writer import count

pytestmark = [
    pytest.mark.anyio,
    # The emulated model is of the last generation that continues a text.
    pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5:DeprecationWarning"),
]

MODES = ("stream", "whole", "shadow", "off")
CORRECTED = "Anna has 3 apples. She eats two. So 2 are left."
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
}


@asynccontextmanager
async def sdk(address: str, key: str = "sk-test") -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=address, api_key=key, max_retries=0) as client:
        yield client


async def create(client: anthropic.AsyncAnthropic, mode: str = "stream", **fields: Any) -> Any:
    extension = {"mode": mode} | fields.pop("extension", {})
    asked = {"model": "scripted", "max_tokens": 100, "messages": QUESTION} | fields
    return await client.messages.create(**asked, extra_body={"stream_aligner": extension})


async def read_into(client: anthropic.AsyncAnthropic, texts: list[str]) -> None:
    async with client.messages.stream(**body()) as stream:
        async for text in stream.text_stream:
            texts.append(text)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "max_tokens": 100, "messages": QUESTION} | fields


async def post(p: Proxy, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return await p.client.post("/v1/messages", json=body(**fields), headers=headers)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, whose shape is checked."""
    said = response.json()
    assert set(said) == {"type", "error", "request_id"}
    assert said["type"] == "error"
    assert set(said["error"]) == {"type", "message"}
    assert response.headers["request-id"] == response.headers["x-request-id"] == said["request_id"]
    error: dict[str, Any] = said["error"]
    return error


@pytest.mark.parametrize("mode", MODES)
async def test_streamed_and_whole_replies_are_the_same(mode: str) -> None:
    async with proxy(aligner=replacing(eats="She eats two.")) as p, sdk(p.address) as client:
        whole = await create(client, mode)
        extra = {"stream_aligner": {"mode": mode}}
        async with client.messages.stream(**body(), extra_body=extra) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
    # Mode `whole` replaces all of it.
    expected = {"stream": CORRECTED, "whole": "She eats two."}.get(mode, REPLY)
    assert "".join(texts) == final.content[0].text == whole.content[0].text == expected
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.model_dump() == whole.usage.model_dump()
    assert whole.usage.input_tokens > 0
    assert whole.usage.output_tokens > 0
    assert whole._request_id
    assert (mode == "off") == (getattr(whole, "stream_aligner", None) is None)


async def test_the_bytes_of_a_stream_and_what_they_tell_of_sentences() -> None:
    async with proxy(aligner=replacing(eats="She eats two.", left="")) as p:
        extension = {"provenance": True}
        response = await post(p, stream=True, stream_aligner=extension)
        whole = (await post(p, stream_aligner=extension)).json()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert response.headers["x-stream-aligner-mode"] == "stream"
    found = [orjson.loads(event.data) for event in events([response.content])]
    in_order(found)
    deltas = [event for event in found if event["type"] == "content_block_delta"]
    told = [e["stream_aligner"]["sentence"] for e in deltas if "stream_aligner" in e]
    assert [sentence["verdict"] for sentence in told] == ["keep", "replace", "replace"]
    assert "".join(s["text"] for s in told) == "".join(d["delta"]["text"] for d in deltas)
    assert found[-2]["stream_aligner"]["cost"]["corrections"] == 2
    assert found[0]["message"]["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert [s["text"] for s in whole["stream_aligner"]["sentences"]] == [s["text"] for s in told]
    assert whole["content"][0]["text"] == "".join(s["text"] for s in told)


async def test_a_sync_client_too() -> None:
    from anyio import to_thread

    def ask(address: str) -> tuple[str, list[str]]:
        with anthropic.Anthropic(base_url=address, api_key="k", max_retries=0) as client:
            whole: Any = client.messages.create(**body())
            with client.messages.stream(**body()) as stream:
                return whole.content[0].text, list(stream.text_stream)

    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        text, texts = await to_thread.run_sync(ask, p.address)
    assert text == "".join(texts) == CORRECTED


@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_a_tool_is_called_and_its_result_answered(mode: str) -> None:
    rules = (
        Rule("It is sunny in Rome.", when="sunny"),
        Rule("I look. ", tool_calls=[CALL]),
    )
    async with proxy(*rules) as p, sdk(p.address) as client:
        called = await create(client, mode, tools=[WEATHER])
        async with client.messages.stream(
            **body(tools=[WEATHER]), extra_body={"stream_aligner": {"mode": mode}}
        ) as stream:
            final = await stream.get_final_message()
        assert [b.model_dump() for b in final.content] == [b.model_dump() for b in called.content]
        use = called.content[1]
        assert called.stop_reason == final.stop_reason == "tool_use"
        assert (use.id, use.name, use.input) == ("call_1", "weather", {"city": "Rome"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        answered = await create(
            client,
            mode,
            tools=[WEATHER],
            messages=[
                *QUESTION,
                {"role": "assistant", "content": called.content},
                {"role": "user", "content": [result]},
            ],
        )
        sent = p.upstream.requests[-1].body["messages"]
    assert answered.content[0].text == "It is sunny in Rome."
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"] == [CALL]
    assert sent[2]["tool_call_id"] == "call_1"


async def test_the_sdks_tool_runner() -> None:
    asked: list[str] = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    rules = (Rule("It is sunny.", when="sunny"), Rule("", tool_calls=[CALL]))
    async with proxy(*rules) as p, sdk(p.address) as client:
        runner = client.beta.messages.tool_runner(**body(), tools=[weather])
        last = await runner.until_done()
    assert asked == ["Rome"]
    assert last.content[0].text == "It is sunny."


@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_reasoning_is_thinking_and_goes_back_with_the_tool_calls(mode: str) -> None:
    rule = Rule("I look.", reasoning="Let me see.", tool_calls=[CALL])
    async with proxy(Rule("Sunny.", when="sunny"), rule) as p, sdk(p.address) as client:
        said = await create(client, mode)
        async with client.messages.stream(
            **body(), extra_body={"stream_aligner": {"mode": mode}}
        ) as stream:
            final = await stream.get_final_message()
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
        turns = [
            {"role": "assistant", "content": said.content},
            {"role": "user", "content": [result]},
        ]
        await create(client, mode, messages=[*QUESTION, *turns])
        sent = p.upstream.requests[-1].body["messages"][1]
    assert [b.model_dump() for b in final.content] == [b.model_dump() for b in said.content]
    assert [block.type for block in said.content] == ["thinking", "text", "tool_use"]
    assert said.content[0].thinking == "Let me see."
    assert sent["reasoning_content"] == "Let me see."
    assert sent["content"] == "I look."


async def test_limits_stops_and_formats_reach_the_upstream() -> None:
    from pydantic import BaseModel

    class Sum(BaseModel):
        total: int

    async with proxy(Rule('{"total": 4}', when="JSON"), Rule(REPLY)) as p, sdk(p.address) as client:
        short = await create(client, max_tokens=3)
        stopped = await create(client, stop_sequences=["She"], system="Be kind.")
        parsed = await client.messages.parse(
            **body(messages=[{"role": "user", "content": "JSON"}]), output_format=Sum
        )
        first, second, third = (request.body for request in p.upstream.requests)
    assert short.stop_reason == "max_tokens"
    assert first["max_tokens"] == 3
    # A chat does not say which one it was.
    assert (stopped.stop_reason, stopped.stop_sequence) == ("end_turn", None)
    assert stopped.content[0].text.strip() == "Anna has 3 apples."
    assert second["stop"] == ["She"]
    assert second["messages"][0] == {"role": "system", "content": "Be kind."}
    assert parsed.parsed_output == Sum(total=4)
    assert third["response_format"]["json_schema"]["schema"]["properties"]["total"]


async def test_the_clients_key_goes_on_as_a_bearer_token() -> None:
    async with proxy() as p:
        async with sdk(p.address, "sk-client") as client:
            await create(client)
        await post(p, {"authorization": "Bearer theirs", "x-api-key": "other"})
        await p.post({"x-api-key": "gateway"})
        sent = [request.headers for request in p.upstream.requests]
    assert sent[0]["authorization"] == "Bearer sk-client"
    assert sent[1]["authorization"] == "Bearer theirs"
    assert "authorization" not in sent[2]
    assert not any(name.startswith(("x-api-key", "anthropic")) for h in sent for name in h)


async def test_errors_are_the_sdks_classes() -> None:
    def refusing(status: int, **more: Any) -> Rule:
        error = {"error": {"message": f"refused {status}", "type": "t"}}
        return Rule(when=f"^{status}$", fault=Fault(status=status, body=error, **more))

    statuses = {
        400: (anthropic.BadRequestError, "invalid_request_error"),
        401: (anthropic.AuthenticationError, "authentication_error"),
        403: (anthropic.PermissionDeniedError, "permission_error"),
        429: (anthropic.RateLimitError, "rate_limit_error"),
        500: (anthropic.InternalServerError, "api_error"),
        503: (anthropic.InternalServerError, "overloaded_error"),
        529: (anthropic.InternalServerError, "overloaded_error"),
    }
    rules = [refusing(status, headers={"retry-after": "7"}) for status in statuses]
    async with (
        proxy(*rules, upstream={"breaker": {"enabled": False}}) as p,
        sdk(p.address) as client,
    ):
        for status, (kind, named) in statuses.items():
            with pytest.raises(kind, match=f"refused {status}") as error:
                await create(client, messages=[{"role": "user", "content": str(status)}])
            assert error.value.status_code == status
            assert error.value.response.headers["retry-after"] == "7"
            assert error.value.request_id
            assert error.value.body["error"]["type"] == named
        with pytest.raises(anthropic.NotFoundError):
            await create(client, model="nobody")


async def test_every_error_of_these_paths_is_in_anthropics_shape() -> None:
    async with proxy(server={"max_body_bytes": 4096}) as p:
        wrong = [
            (await post(p, max_tokens=None), 400, "invalid_request_error"),
            (await p.client.post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
            (await p.client.post("/v1/messages", content=b" " * 5000), 413, "request_too_large"),
            (await p.client.get("/v1/messages"), 405, "invalid_request_error"),
            (await p.client.get("/v1/messages/batches"), 404, "not_found_error"),
            (await post(p, logprobs=True), 400, "invalid_request_error"),
            (await post(p, stream_aligner={"strength": 0.9}), 400, "invalid_request_error"),
        ]
        chats = await p.post(model="nobody")
    for response, status, kind in wrong:
        assert response.status_code == status, response.text
        assert error_of(response)["type"] == kind
    assert error_of(wrong[0][0])["message"].startswith("max_tokens: ")
    assert "request-id" not in chats.headers
    assert set(chats.json()) == {"error"}


async def test_what_only_a_chat_knows_is_named_as_the_client_knows_it() -> None:
    async with proxy(alignment={"structured_output": "refuse"}) as p:
        schema = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
        refused = await post(p, output_config=schema)
    message = error_of(refused)["message"]
    assert "'output_config.format'" in message
    assert "response_format" not in message


async def test_an_error_within_a_stream_is_an_event_and_the_last() -> None:
    def judge(review: Review) -> Verdict:
        if "eats" in review.sentence:
            raise ReviewError("the aligner failed")
        return Verdict()

    async with proxy(aligner=FunctionAligner(judge)) as p, sdk(p.address) as client:
        response = await post(p, stream=True)
        texts: list[str] = []
        with pytest.raises(anthropic.APIStatusError) as error:
            await read_into(client, texts)
    assert "".join(texts).strip() == "Anna has 3 apples."
    assert error.value.body["error"]["type"] == "api_error"
    found = events([response.content])
    last = orjson.loads(found[-1].data)
    assert found[-1].name == last["type"] == "error"
    assert last["request_id"] == response.headers["request-id"]
    assert [event.name for event in found].count("error") == 1
    assert "message_stop" not in [event.name for event in found]


async def test_a_call_that_is_no_object_is_an_error_either_way() -> None:
    broken = {**CALL, "function": {"name": "weather", "arguments": "[1]"}}
    async with proxy(Rule("", tool_calls=[broken])) as p:
        whole = await post(p, tools=[WEATHER])
        streamed = await post(p, tools=[WEATHER], stream=True)
    assert whole.status_code == 502
    assert error_of(whole)["type"] == "api_error"
    assert events([streamed.content])[-1].name == "error"


@asynccontextmanager
async def before_claude(
    aligner: FunctionAligner | None = None, api_key: str | None = None, **options: Any
) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, AnthropicEmulator]]:
    """A client of Anthropic's, the proxy, and an upstream that speaks Anthropic's API."""
    behind = AnthropicEmulator(**options)
    async with serve(behind) as address:
        upstream = {"base_url": f"{address}/v1", "dialect": "anthropic", "api_key": api_key}
        upstream = {name: value for name, value in upstream.items() if value is not None}
        upstream |= {"models": ["claude-*"]}
        app = create_app(settings(address, upstream=upstream), aligner=aligner or FunctionAligner())
        async with serve(app) as front, sdk(front, KEY) as client:
            yield client, behind


@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_from_anthropic_to_anthropic(mode: str) -> None:
    tools = [WEATHER | {"name": "add"}, WEATHER | {"name": "now"}]
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    async with before_claude() as (client, behind):
        said = await create(
            client,
            mode,
            model=CLAUDE,
            system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
            thinking=thinking,
            stop_sequences=["END"],
            metadata={"user_id": "u"},
        )
        called = await create(client, mode, model=CLAUDE, thinking=thinking, tools=tools)
        turns = [*QUESTION, {"role": "assistant", "content": called.content}]
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "4"}
            for block in called.content
            if block.type == "tool_use"
        ]
        turns.append({"role": "user", "content": results})
        await create(client, mode, model=CLAUDE, messages=turns, tools=tools, thinking=thinking)
        first, _, third = behind.requests
    thought = {"type": "thinking", "thinking": "Let me count.", "signature": "EqQB"}
    assert said.content[0].model_dump() == thought
    assert said.content[1].text == CLAUDES_REPLY
    assert said.stop_reason == "end_turn"
    assert said.usage.output_tokens == count(CLAUDES_REPLY) + 4
    assert said.usage.cache_read_input_tokens == 1
    assert first["thinking"] == thinking
    assert first["max_tokens"] == 100
    assert first["stop_sequences"] == ["END"]
    assert first["metadata"] == {"user_id": "u"}
    assert first["system"] == [{"type": "text", "text": "Be kind."}]
    assert called.stop_reason == "tool_use"
    assert [b.type for b in called.content] == ["thinking", "tool_use", "tool_use"]
    assert [b.input for b in called.content[1:]] == [{"a": 1}, {}]
    # What was thought goes back signed, before the calls it led to.
    assert third["messages"][1]["content"][0] == thought
    assert [b["type"] for b in third["messages"][2]["content"]] == ["tool_result"] * 2


async def test_a_corrected_sentence_is_continued_by_claude() -> None:
    async with before_claude(replacing(eats="She gives one away.")) as (client, behind):
        said = await create(client, model=CLAUDE)
        await behind.until_idle()
    assert said.content[0].text == CLAUDES_REPLY.replace(
        "She eats one of them.", "She gives one away."
    )
    assert said.stream_aligner["continuation"] == "prefill"
    assert len(behind.requests) == 2


async def test_claudes_errors_come_back_as_they_were() -> None:
    async with before_claude(fault="overloaded") as (client, _):
        with pytest.raises(anthropic.InternalServerError) as before:
            await create(client, model=CLAUDE)
    assert before.value.status_code == 529
    assert before.value.response.headers["retry-after"] == "7"
    assert before.value.body["error"]["type"] == "overloaded_error"
    async with before_claude(fault="overloaded within") as (client, _):
        stream = await create(client, "off", model=CLAUDE, stream=True)
        with pytest.raises(anthropic.APIStatusError) as within:
            _ = [event async for event in stream]
    assert within.value.body["error"] == {"type": "overloaded_error", "message": "Overloaded"}


async def test_the_openapi_document_describes_the_body() -> None:
    async with proxy() as p:
        document = (await p.client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/messages"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(schema["required"]) == {"model", "max_tokens", "messages"}
    assert {"system", "tools", "stream_aligner"} <= set(schema["properties"])
