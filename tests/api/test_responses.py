"""`POST /v1/responses` over real HTTP, with the official SDK as the client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import orjson
import pytest
from pydantic import BaseModel

from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import REPLY, Proxy, error_of, proxy, replacing
from tests.fakes import FunctionAligner
from tests.strict import events

pytestmark = pytest.mark.anyio

ALIGNED = "Anna has 3 apples. She eats two. So 2 are left."
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object"},
    "strict": False,
}


def sdk(p: Proxy, key: str = "anna") -> openai.AsyncOpenAI:
    """A client that checks every answer against the SDK's own models."""
    return openai.AsyncOpenAI(
        base_url=f"{p.address}/v1", api_key=key, max_retries=0, _strict_response_validation=True
    )


def eating_two() -> FunctionAligner:
    return replacing(eats="She eats two.")


async def test_a_response_is_aligned_streamed_and_whole() -> None:
    async with proxy(aligner=eating_two()) as p, sdk(p) as client:
        whole = await client.responses.create(model="scripted", input="How many?")
        stream = await client.responses.create(model="scripted", input="How many?", stream=True)
        found = [event async for event in stream]
        asked = [request.body["messages"] for request in p.upstream.requests]
    assert whole.output_text == ALIGNED
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens > 0
    assert whole.model_extra is not None
    assert whole.model_extra["stream_aligner"]["cost"]["corrections"] == 1
    assert asked[0] == [{"role": "user", "content": "How many?"}]
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert deltas == ["Anna has 3 apples.", " She eats two.", " So 2 are left."]
    last = found[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == ALIGNED
    assert last.response.usage == whole.usage
    assert [event.sequence_number for event in found] == list(range(len(found)))


async def test_the_bytes_of_a_stream_are_named_events_without_an_end_marker() -> None:
    async with proxy() as p:
        body = {"model": "scripted", "input": "a", "stream": True}
        answer = await p.client.post("/v1/responses", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "[DONE]" not in answer.text
    found = events([answer.content])
    assert [event.name for event in found] == [orjson.loads(e.data)["type"] for e in found]
    assert [event.name for event in found][:2] == ["response.created", "response.in_progress"]
    assert found[-1].name == "response.completed"


async def test_the_streaming_helper_puts_the_aligned_text_together() -> None:
    async with (
        proxy(Rule(REPLY, reasoning="Hm. Well."), aligner=eating_two()) as p,
        sdk(p) as client,
    ):
        async with client.responses.stream(model="scripted", input="How many?") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        whole = await client.responses.create(model="scripted", input="How many?")
    assert final.output_text == ALIGNED
    assert [item.type for item in final.output] == ["reasoning", "message"]
    reasoning = whole.output[0]
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text == "Hm. Well."
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


class Answer(BaseModel):
    apples: int


async def test_a_format_is_parsed_and_passes_through_unaligned() -> None:
    async with proxy(Rule('{"apples": 2}'), aligner=replacing(apples="no")) as p, sdk(p) as client:
        parsed = await client.responses.parse(model="scripted", input="a", text_format=Answer)
        async with client.responses.stream(
            model="scripted", input="a", text_format=Answer
        ) as stream:
            streamed = await stream.get_final_response()
        sent = p.upstream.requests[0].body["response_format"]
    assert parsed.output_parsed == streamed.output_parsed == Answer(apples=2)
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"]["properties"]["apples"] == {
        "title": "Apples",
        "type": "integer",
    }


async def test_where_formats_are_refused_the_error_has_this_apis_name() -> None:
    async with proxy(alignment={"structured_output": "refuse"}) as p, sdk(p) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.responses.parse(model="scripted", input="a", text_format=Answer)
    assert raised.value.param == "text.format"
    assert "'text.format'" in raised.value.message
    assert "response_format" not in raised.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_output_answered(stream: bool) -> None:
    rules = (Rule("It is sunny.", when="sun"), Rule("Let me look.", tool_calls=(CALL,)))
    async with proxy(*rules) as p, sdk(p) as client:
        first: Any = await client.responses.create(
            model="scripted", input="Weather?", tools=[TOOL], stream=stream
        )
        if stream:
            first = [event async for event in first][-1].response
        call = first.output[1]
        assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"a": 1}')
        answer = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        items: Any = [{"role": "user", "content": "Weather?"}, *first.to_dict()["output"], answer]
        second = await client.responses.create(model="scripted", input=items, tools=[TOOL])
        third = await client.responses.create(
            model="scripted", input=[answer], tools=[TOOL], previous_response_id=first.id
        )
        sent = [request.body["messages"] for request in p.upstream.requests]
    assert second.output_text == third.output_text == "It is sunny."
    assert sent[1] == sent[2]
    assert sent[1][1:] == [
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]


async def test_a_conversation_goes_on_from_a_response_without_its_instructions() -> None:
    async with proxy(aligner=eating_two()) as p, sdk(p) as client:
        ask = client.responses.create
        first = await ask(model="scripted", input="How many?", instructions="Be kind.")
        second = await ask(model="scripted", input="Sure?", previous_response_id=first.id)
        await ask(
            model="scripted",
            input="Really?",
            instructions="Be short.",
            previous_response_id=second.id,
        )
        sent = next(
            request.body["messages"]
            for request in p.upstream.requests
            if request.body["messages"][-1] == {"role": "user", "content": "Really?"}
        )
        items = (await client.responses.input_items.list(second.id, order="asc")).data
        kept = await client.responses.retrieve(second.id)
    assert sent == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": ALIGNED},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": ALIGNED},
        {"role": "user", "content": "Really?"},
    ]
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    assert kept == second
    assert kept.previous_response_id == first.id


async def test_what_is_not_kept_is_not_found() -> None:
    async with proxy() as p, sdk(p) as anna, sdk(p, "ben") as ben:
        kept = await anna.responses.create(model="scripted", input="a")
        loose = await anna.responses.create(model="scripted", input="a", store=False)
        for client, response_id in ((ben, kept.id), (anna, loose.id), (anna, "resp_none")):
            with pytest.raises(openai.NotFoundError) as raised:
                await client.responses.create(
                    model="scripted", input="b", previous_response_id=response_id
                )
            assert raised.value.code == "previous_response_not_found"
            assert raised.value.param == "previous_response_id"
            assert "'input'" in raised.value.message
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(response_id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.input_items.list(response_id)
            with pytest.raises(openai.NotFoundError):
                await client.responses.delete(response_id)
        await anna.responses.delete(kept.id)
        with pytest.raises(openai.NotFoundError):
            await anna.responses.retrieve(kept.id)
        assert len(p.upstream.requests) == 2
    assert loose.model_extra is not None
    assert (kept.model_extra or {})["store"] is True
    assert loose.model_extra["store"] is False


async def test_without_memory_for_them_no_response_is_kept() -> None:
    async with proxy(server={"response_store_bytes": 0}) as p, sdk(p) as client:
        made = await client.responses.create(model="scripted", input="a")
        with pytest.raises(openai.NotFoundError) as raised:
            await client.responses.create(model="scripted", input="b", previous_response_id=made.id)
    assert "response_store_bytes" in raised.value.message


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
async def test_every_mode_gives_the_same_streamed_and_whole(mode: str) -> None:
    async with proxy(aligner=eating_two()) as p, sdk(p) as client:
        extra = {"stream_aligner": {"mode": mode, "provenance": True}}
        whole = await client.responses.create(model="scripted", input="a", extra_body=extra)
        stream = await client.responses.create(
            model="scripted", input="a", extra_body=extra, stream=True
        )
        found = [event async for event in stream]
    last: Any = found[-1]
    assert whole.output_text == last.response.output_text
    texts = {"stream": ALIGNED, "whole": "She eats two."}
    assert whole.output_text == texts.get(mode, REPLY)
    said = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    assert said == whole.output_text
    told = [(event.model_extra or {}).get("stream_aligner") for event in found]
    sentences = [one["sentence"]["verdict"] for one in told if one]
    extension = last.response.model_extra.get("stream_aligner")
    if mode == "off":
        assert not sentences
        assert extension is None
    else:
        assert "replace" in sentences
        assert [one["verdict"] for one in extension["sentences"]] == sentences
        assert extension["mode"] == mode


async def test_a_limit_makes_it_incomplete() -> None:
    async with proxy() as p, sdk(p) as client:
        whole = await client.responses.create(model="scripted", input="a", max_output_tokens=5)
        stream = await client.responses.create(
            model="scripted", input="a", max_output_tokens=5, stream=True
        )
        last: Any = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[0].status == "incomplete"


async def test_until_the_first_byte_errors_are_http_errors() -> None:
    busy = Fault(status=429, body={"error": {"message": "busy", "param": "max_tokens"}})
    async with proxy(Rule(fault=busy), upstream={"retries": 0}) as p, sdk(p) as client:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as raised:
                await client.responses.create(model="scripted", input="a", stream=stream)
            assert raised.value.param in (None, "max_output_tokens")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.create(model="none", input="a")
        assert missing.value.code == "model_not_found"
        refused = await p.client.post("/v1/responses", json={"model": "scripted"})
        assert error_of(refused)["param"] == "input"
        garbled = await p.client.post("/v1/responses", content=b"{")
        assert error_of(garbled)["code"] == "invalid_json"


async def test_after_the_first_byte_an_error_is_raised_from_the_stream() -> None:
    def judge(review: Review) -> Verdict:
        if "So 2" in review.sentence:
            raise RuntimeError("broken")
        return Verdict()

    async with proxy(aligner=FunctionAligner(judge)) as p, sdk(p) as client:
        stream = await client.responses.create(model="scripted", input="a", stream=True)
        text = ""
        with pytest.raises(openai.APIError) as raised:  # noqa: PT012 - the stream is what raises
            async for event in stream:
                if event.type == "response.output_text.delta":
                    text += event.delta
        body = {"model": "scripted", "input": "a", "stream": True}
        answer = await p.client.post("/v1/responses", json=body)
    assert raised.value.code == "review_failed"
    assert text == "Anna has 3 apples. She eats one."
    error, last = [orjson.loads(event.data) for event in events([answer.content])][-2:]
    assert error["type"] == "error"
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["sequence_number"] == error["sequence_number"] + 1


async def test_the_blocking_client_gets_the_same() -> None:
    def ask(address: str) -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as client:
            whole = client.responses.create(model="scripted", input="a").output_text
            with client.responses.stream(model="scripted", input="a") as stream:
                return whole, stream.get_final_response().output_text

    async with proxy(aligner=eating_two()) as p:
        texts = await asyncio.to_thread(ask, p.address)
    assert texts == (ALIGNED, ALIGNED)


async def test_the_document_describes_the_request_and_the_lists_parameters() -> None:
    async with proxy() as p:
        document = (await p.client.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["ResponsesBody"]
    assert {"model", "input"} == set(schema["required"])
    path = document["paths"]["/v1/responses/{response_id}/input_items"]["get"]
    assert {one["name"] for one in path["parameters"]} == {"response_id", "limit", "order", "after"}
