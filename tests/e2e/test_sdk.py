"""The official `openai` SDK against a real proxy, and curl."""

import json
import shutil
import subprocess

import openai
import pydantic
import pytest

# The upstream is rude unless what it continues is kind.
TONE = {
    "rules": [
        {"after": r"kind\.$", "reply": " Dear friend, all is well."},
        {"reply": "I am rude. You fool, go away."},
    ]
}
KIND = [{"find": r"I am rude\.", "replace": "I am kind."}]
ALIGNED = "I am kind. Dear friend, all is well."
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def url(start) -> str:
    return start(script=TONE, rules=KIND).url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
        yield client


def test_a_plain_completion_is_aligned_and_continued(client):
    reply = client.chat.completions.create(model="scripted", messages=MESSAGES)
    assert reply.choices[0].message.content == ALIGNED
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens > 0
    assert reply.stream_aligner["mode"] == "stream"
    assert reply.stream_aligner["cost"]["branches"] == 2


def test_a_streamed_completion_gives_the_same_text_sentence_by_sentence(client):
    stream = client.chat.completions.create(
        model="scripted",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert "".join(pieces) == ALIGNED
    assert pieces[0] == "I am kind."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == (
        chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_the_streaming_helper_accumulates_the_aligned_text(client):
    with client.chat.completions.stream(model="scripted", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ALIGNED


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_the_async_client_gets_the_same(url, stream):
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
        reply = await client.chat.completions.create(
            model="scripted", messages=MESSAGES, stream=stream
        )
        if stream:
            parts = [c.choices[0].delta.content or "" async for c in reply if c.choices]
            text = "".join(parts)
        else:
            text = reply.choices[0].message.content
    assert text == ALIGNED


def test_provenance_tells_every_sentences_original_verdict_and_timing(client):
    extra = {"stream_aligner": {"provenance": True}}
    reply = client.chat.completions.create(model="scripted", messages=MESSAGES, extra_body=extra)
    first, second = reply.stream_aligner["sentences"]
    assert (first["original"], first["text"], first["verdict"]) == (
        "I am rude.",
        "I am kind.",
        "replace",
    )
    assert (second["text"], second["verdict"], second["branch"]) == (
        " Dear friend, all is well.",
        "keep",
        1,
    )
    assert first["review_ms"] >= 0

    stream = client.chat.completions.create(
        model="scripted", messages=MESSAGES, extra_body=extra, stream=True
    )
    sentences = [
        chunk.stream_aligner["sentence"]
        for chunk in stream
        if getattr(chunk, "stream_aligner", None) and "sentence" in chunk.stream_aligner
    ]
    for sentence in (first, second, *sentences):
        del sentence["review_ms"], sentence["waited_ms"]
    assert sentences == [first, second]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("stream", ALIGNED),
        ("whole", "I am kind. You fool, go away."),
        ("shadow", "I am rude. You fool, go away."),
        ("off", "I am rude. You fool, go away."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_mode_can_be_chosen_per_request_and_streams_what_it_gives_whole(
    client, mode, text, stream
):
    reply = client.chat.completions.create(
        model="scripted",
        messages=MESSAGES,
        stream=stream,
        extra_body={"stream_aligner": {"mode": mode}},
    )
    if stream:
        got = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    else:
        got = reply.choices[0].message.content
    assert got == text


def test_models_are_listed_and_an_unknown_one_is_a_404(client):
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-none", messages=MESSAGES)
    assert raised.value.code == "model_not_found"


def test_an_error_in_the_middle_raises_after_what_was_reviewed(start):
    script = {"rules": [{"reply": "I am rude. Go away. Now", "fault": {"reset": 6}}]}
    url = start(script=script, rules=KIND, dialect="openai").url
    text = ""
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        stream = client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError):  # noqa: PT012 - the stream is what raises
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
    assert text == "I am kind. Go away."


def test_refusals_have_the_sdks_own_classes_and_a_request_id(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="scripted", messages=MESSAGES, logprobs=True)
    assert raised.value.param == "logprobs"
    assert raised.value.request_id


def test_tool_calls_pass_through_in_order(start):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"x": 1}'},
    }
    script = {"rules": [{"reply": "I am rude. Let me look.", "tool_calls": [call]}]}
    url = start(script=script, rules=KIND).url
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        for stream in (False, True):
            reply = client.chat.completions.create(
                model="scripted", messages=MESSAGES, tools=tools, stream=stream
            )
            if stream:
                order = []
                for chunk in reply:
                    if chunk.choices and chunk.choices[0].delta.content:
                        order.append(chunk.choices[0].delta.content)
                    if chunk.choices and chunk.choices[0].delta.tool_calls:
                        order.append("call")
                assert order[:2] == ["I am kind.", " Let me look."]
                assert set(order[2:]) == {"call"}
            else:
                message = reply.choices[0].message
                assert message.content == "I am kind. Let me look."
                assert message.tool_calls[0].function.arguments == '{"x": 1}'
                assert reply.choices[0].finish_reason == "tool_calls"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_without_buffering_prints_valid_events(url):
    body = json.dumps({"model": "scripted", "messages": MESSAGES, "stream": True})
    done = subprocess.run(
        [
            "curl",
            "-sN",
            f"{url}/chat/completions",
            "-H",
            "content-type: application/json",
            "-d",
            body,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = [line for line in done.stdout.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines[:-1]]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == ALIGNED


class Sum(pydantic.BaseModel):
    sum: int


WEATHER = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
}


def weather(city: str) -> dict:
    parameters = {"type": "object", "properties": {city: {"type": "string"}}}
    return {"type": "function", "function": {"name": "weather", "parameters": parameters}}


def test_json_is_parsed_into_a_model(start):
    stack = start(script={"rules": [{"reply": '{"sum": 4}'}]})
    with openai.OpenAI(base_url=stack.url, api_key="k", max_retries=0) as client:
        reply = client.chat.completions.parse(
            model="scripted", messages=MESSAGES, response_format=Sum
        )
        assert reply.choices[0].message.parsed == Sum(sum=4)
        with client.chat.completions.stream(
            model="scripted", messages=MESSAGES, response_format=Sum
        ) as stream:
            final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Sum(sum=4)


def test_a_tool_is_called_and_its_answer_told(start):
    rules = [{"when": "sunny", "reply": "It is sunny."}, {"tool_calls": [WEATHER], "reply": ""}]
    stack = start(script={"rules": rules})
    asked = [{"role": "user", "content": "What is the weather?"}]
    with openai.OpenAI(base_url=stack.url, api_key="k", max_retries=0) as client:
        with client.chat.completions.stream(
            model="scripted", messages=asked, tools=[weather("city")]
        ) as stream:
            message = stream.get_final_completion().choices[0].message
        [call] = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Rome"}
        asked += [
            {"role": "assistant", "tool_calls": [WEATHER]},
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        reply = client.chat.completions.create(
            model="scripted", messages=asked, tools=[weather("city")]
        )
    assert reply.choices[0].message.content == "It is sunny."
