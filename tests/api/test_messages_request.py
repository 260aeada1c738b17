"""Requests to the Messages API as the chat requests they become. Pure."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream_aligner_proxy.api.faces.messages_request import as_chat
from stream_aligner_proxy.core.errors import RequestError

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "Of a city", "input_schema": SCHEMA}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "max_tokens": 10, "messages": HELLO} | fields
    return as_chat(orjson.dumps({k: v for k, v in body.items() if v is not ...}))[0]


def messages(*given: Any, **fields: Any) -> list[Any]:
    said: list[Any] = chat(messages=list(given), **fields)["messages"]
    return said


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def refused(**fields: Any) -> str:
    with pytest.raises(RequestError) as error:
        chat(**fields)
    assert error.value.status == 400
    assert error.value.param is not None
    assert error.value.message.startswith(error.value.param)
    return error.value.message


def test_the_least_request() -> None:
    raw, body = as_chat(orjson.dumps({"model": "m", "max_tokens": 10, "messages": HELLO}))
    assert raw == {"model": "m", "messages": HELLO}
    # The dialect says under which name the upstream is told.
    assert body.token_limit() == 10


def test_the_parameters() -> None:
    said = chat(
        stream=True,
        stop_sequences=["END", ""],
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        metadata={"user_id": "u1"},
        service_tier="standard_only",
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "max"},
        cache_control={"type": "ephemeral"},
        stream_aligner={"mode": "whole"},
        seed=7,
    )
    assert said == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "user": "u1",
        "service_tier": "default",
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "reasoning_effort": "xhigh",
        "stream_aligner": {"mode": "whole"},
        "seed": 7,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
    ],
)
def test_a_schema_for_the_output(fields: dict[str, Any]) -> None:
    wanted = chat(**fields)["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"] == SCHEMA
    assert wanted["json_schema"]["strict"] is True


def test_tools_and_which_to_choose() -> None:
    said = chat(tools=[WEATHER, {**WEATHER, "type": "custom", "strict": True}])
    function = {"name": "weather", "description": "Of a city", "parameters": SCHEMA}
    assert said["tools"] == [
        {"type": "function", "function": function},
        {"type": "function", "function": {**function, "strict": True}},
    ]
    for choice, chosen in (
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
        ),
    ):
        assert chat(tools=[WEATHER], tool_choice=choice)["tool_choice"] == chosen
    one = chat(tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert one["parallel_tool_calls"] is False
    assert one["tool_choice"] == "required"


def test_a_system_prompt_is_a_text_or_blocks() -> None:
    expected = {"role": "system", "content": "Be kind."}
    assert chat(system="Be kind.")["messages"] == [expected, *HELLO]
    cached = text("Be kind.", cache_control={"type": "ephemeral"})
    assert chat(system=[cached])["messages"] == [expected, *HELLO]
    two = chat(system=[text("Be kind."), text("Be brief.")])["messages"][0]
    assert two["content"] == "Be kind.\nBe brief."
    assert chat(system="")["messages"] == HELLO
    later = messages(*HELLO, {"role": "system", "content": "Be kind."})
    assert later == [*HELLO, expected]


def test_what_a_user_shows() -> None:
    [said] = messages(
        user(
            text("Look."),
            {"type": "image", "source": PNG},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            {"type": "document", "source": PDF, "title": "report.pdf", "context": "Old."},
            {"type": "document", "source": {"type": "text", "data": "Plain."}, "title": "Notes"},
            {"type": "document", "source": {"type": "content", "content": [text("Parts.")]}},
            {"type": "search_result", "title": "T", "source": "s", "content": [text("Found.")]},
        )
    )
    assert said["role"] == "user"
    file = {"filename": "report.pdf", "file_data": "data:application/pdf;base64,JVBE"}
    assert said["content"] == [
        text("Look."),
        PNG_PART,
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        text("Old."),
        {"type": "file", "file": file},
        text("Notes"),
        text("Plain."),
        text("Parts."),
        text("T\ns"),
        text("Found."),
    ]
    assert messages(user(text("One."), text(""), text("Two.")))[0]["content"] == "One.\nTwo."


def test_tool_calls_and_their_results_in_the_order_of_a_chat() -> None:
    def use(number: int) -> dict[str, Any]:
        name = f"toolu_{number}"
        return {"type": "tool_use", "id": name, "name": "weather", "input": {"city": "Rome"}}

    said = messages(
        *HELLO,
        assistant(text("I look."), use(1), use(2), use(3)),
        user(
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_2",
                "content": [text("a"), {"type": "image", "source": PNG}, text("b")],
            },
            {"type": "tool_result", "tool_use_id": "toolu_3", "is_error": True},
            text("Well?"),
        ),
    )
    calls = said[1]["tool_calls"]
    assert said[1]["content"] == "I look."
    assert [call["id"] for call in calls] == ["toolu_1", "toolu_2", "toolu_3"]
    function = calls[0]["function"]
    assert (function["name"], orjson.loads(function["arguments"])) == ("weather", {"city": "Rome"})
    assert said[2:] == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "toolu_3", "content": "Error: "},
        # A tool's message can only be text: the user shows the rest.
        {"role": "user", "content": [PNG_PART, text("Well?")]},
    ]
    assert messages(*HELLO, assistant(use(1)))[1]["content"] is None


def test_earlier_thinking() -> None:
    def thinking(said: str, signature: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": said, "signature": signature}

    use = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    signed, redacted = thinking("Hm.", "EqQB"), {"type": "redacted_thinking", "data": "x"}
    ours = thinking("So.", "stream_aligner:reasoning_content")
    # Signed thoughts are for those that signed them.
    said = messages(*HELLO, assistant(signed, redacted, text("Yes.")))[1]
    assert said == {
        "role": "assistant",
        "content": "Yes.",
        "thinking_blocks": [signed, redacted],
    }
    # Others are needed with tool calls, in the field in which they came, and only there.
    assert "reasoning_content" not in messages(*HELLO, assistant(ours, text("Yes.")))[1]
    assert messages(*HELLO, assistant(ours, use))[1]["reasoning_content"] == "So."
    for signature in ("", "stream_aligner:", "stream_aligner:content"):
        said = messages(*HELLO, assistant(thinking("So.", signature), use))[1]
        assert set(said) == {"role", "content", "tool_calls"}
        assert said["content"] is None


def test_a_beginning_of_the_reply_is_the_last_message() -> None:
    said = messages(*HELLO, {"role": "assistant", "content": "Dear"})
    assert said[-1] == {"role": "assistant", "content": "Dear"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"model": ...}, "model: Field required"),
        ({"messages": []}, "messages: Input should not be empty"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content: Input should be a"),
        ({"messages": [user({})]}, "messages.0.content.0.type: Field required"),
        ({"messages": [user()]}, "messages.0.content: Input should not be empty"),
        ({"messages": [user({"type": "text"})]}, "messages.0.content.0.text: Field required"),
        (
            {"messages": [user(text("a"), {"type": "image"})]},
            "messages.0.content.1.source: Field required",
        ),
        (
            {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
            "messages.0.content.0.source.type: should be 'base64' or 'url'",
        ),
        (
            {"messages": [user({"type": "document", "source": {"type": "url", "url": "u"}})]},
            "messages.0.content.0.source.type: should be",
        ),
        (
            {
                "messages": [
                    user({"type": "document", "source": PDF, "citations": {"enabled": True}})
                ]
            },
            "messages.0.content.0.citations.enabled: ",
        ),
        ({"messages": [user({"type": "video"})]}, "messages.0.content.0.type: 'video'"),
        (
            {"messages": [user({"type": "tool_result", "content": "a"})]},
            "messages.0.content.0.tool_use_id: Field required",
        ),
        (
            {
                "messages": [
                    user({"type": "tool_result", "tool_use_id": "t", "content": [text("a"), 1]})
                ]
            },
            "messages.0.content.0.content.1: Input should be an object",
        ),
        (
            {"messages": [*HELLO, assistant({"type": "tool_use", "id": "t", "name": "f"})]},
            "messages.1.content.0.input: ",
        ),
        (
            {"messages": [*HELLO, assistant({"type": "server_tool_use"})]},
            "messages.1.content.0.type: ",
        ),
        ({"system": [{"type": "image"}]}, "system.0.type: "),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type: "),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema: Field required"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: Field required"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type: "),
        ({"stop_sequences": "a"}, "stop_sequences: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type: "),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            "output_config.format.schema: Field required",
        ),
        ({"container": "c"}, "container: "),
        ({"mcp_servers": [{}]}, "mcp_servers: "),
        ({"context_management": {}}, "context_management: "),
        ({"n": 2}, "n: "),
        ({"stream_aligner": {"speed": 1}}, "stream_aligner.speed: Extra inputs"),
    ],
)
def test_what_is_wrong_is_named_as_the_client_knows_it(fields: dict[str, Any], says: str) -> None:
    assert refused(**fields).startswith(says)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "text", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "source", "content", "id", "name", "input", "role"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
KINDS = [
    "text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking",
    "search_result", "base64", "url", "content",
]  # fmt: skip
BLOCKS = st.lists(
    st.builds(
        lambda kind, fields: {"type": kind, **fields},
        st.sampled_from(KINDS),
        st.dictionaries(
            st.sampled_from(
                ["text", "source", "content", "id", "name", "input", "tool_use_id", "thinking",
                 "signature", "data", "citations", "title", "is_error"]
            ),
            JSON,
            max_size=4,
        ),
    ),
    max_size=3,
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": BLOCKS | JSON}
    ),
    max_size=3,
)
FIELDS = [
    "system", "tools", "tool_choice", "thinking", "metadata", "output_config", "output_format",
    "stop_sequences", "stream", "n", "stream_aligner", "stop", "response_format", "service_tier",
]  # fmt: skip


@examples(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(messages=MESSAGES | JSON, fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2))
def test_whatever_is_sent_is_a_chat_request_or_a_clear_refusal(
    messages: Any, fields: dict[str, Any]
) -> None:
    sent = {"model": "m", "max_tokens": 5, "messages": messages, **fields}
    refusal = None
    try:
        raw, body = as_chat(orjson.dumps(sent))
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert (refusal.status, bool(refusal.param)) == (400, True)
        return
    assert body.token_limit() == 5
    assert len(raw["messages"]) >= 1
