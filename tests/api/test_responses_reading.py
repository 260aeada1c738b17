"""A Responses request read as a chat request, and what is refused in it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream_aligner_proxy.api.faces.responses_input import items_of
from stream_aligner_proxy.api.faces.responses_listing import listed, page
from stream_aligner_proxy.api.faces.responses_request import as_chat
from stream_aligner_proxy.api.faces.responses_schemas import read
from stream_aligner_proxy.api.schemas import ChatBody, validated
from stream_aligner_proxy.core.errors import RequestError

USER = {"role": "user", "content": "a"}


def chat(history: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    raw = {"model": "m", "input": "How many?"} | fields
    body = read(raw)
    made = as_chat(raw, body, history or [], items_of(body.input))
    validated(ChatBody, made)
    return made


def said(items: Any, **fields: Any) -> list[dict[str, Any]]:
    return chat(input=items, **fields)["messages"]


def test_text_and_instructions_become_two_messages() -> None:
    assert said("How many?", instructions="Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many?"},
    ]


def test_what_instructs_at_the_beginning_is_one_system_message() -> None:
    items = [
        {"role": "developer", "content": "Be short."},
        {"role": "system", "content": [{"type": "input_text", "text": "Be clear."}]},
        USER,
        {"role": "developer", "content": "Now rhyme."},
    ]
    assert said(items, instructions="Be kind.") == [
        {"role": "system", "content": "Be kind.\n\nBe short.\n\nBe clear."},
        USER,
        {"role": "system", "content": "Now rhyme."},
    ]


def test_parts_that_are_not_text_have_chats_names() -> None:
    cached = {"mode": "explicit"}
    content = [
        {"type": "input_text", "text": "See", "prompt_cache_breakpoint": cached},
        {"type": "input_image", "image_url": "data:x", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:y"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
    ]
    assert said([{"role": "user", "content": content}])[0]["content"] == [
        {"type": "text", "text": "See", "prompt_cache_breakpoint": cached},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:y"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_audio", "input_audio": {"data": "z", "format": "wav"}},
    ]


def test_an_assistants_text_and_calls_are_one_message_and_reasoning_is_left_out() -> None:
    items = [
        USER,
        {"type": "reasoning", "id": "rs", "summary": []},
        {
            "type": "message",
            "id": "msg",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Let me ", "annotations": []},
                {"type": "output_text", "text": "see.", "annotations": []},
            ],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [
                {"type": "input_text", "text": "y"},
                {"type": "input_image", "image_url": "data:z"},
            ],
        },
        {"type": "function_call", "call_id": "c3", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": "4"},
    ]
    add = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert said(items) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "c1", **add},
                {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "x"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [
                {"type": "text", "text": "y"},
                {"type": "image_url", "image_url": {"url": "data:z"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c3", **add}]},
        {"role": "tool", "tool_call_id": "c3", "content": "4"},
    ]


def test_a_refusal_stays_one() -> None:
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert said([USER, item, USER])[1]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_fields_have_chats_names_and_unknown_ones_go_on() -> None:
    made = chat(
        max_output_tokens=9,
        temperature=0.5,
        top_p=None,
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        metadata={"a": "b"},
        store=True,
        include=["reasoning.encrypted_content"],
        stream_options={"include_obfuscation": False},
        truncation="disabled",
        max_tool_calls=3,
        user="u",
        seed=7,
        top_k=None,
        stream_aligner={"mode": "whole"},
    )
    del made["messages"]
    assert made == {
        "model": "m",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "reasoning_effort": "low",
        "verbosity": "low",
        "user": "u",
        "seed": 7,
        "top_k": None,
        "stream_aligner": {"mode": "whole"},
    }


def test_tools_and_choices_go_one_level_deeper() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "d"}
    made = chat(
        tools=[
            {"type": "function", "name": "add", "parameters": {}, "strict": True},
            {"type": "custom", "name": "run", "format": grammar},
        ],
        tool_choice={
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "add"}],
        },
    )
    assert made["tools"] == [
        {"type": "function", "function": {"name": "add", "parameters": {}, "strict": True}},
        {
            "type": "custom",
            "custom": {
                "name": "run",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "d"}},
            },
        },
    ]
    named = {"type": "function", "function": {"name": "add"}}
    allowed = {"mode": "auto", "tools": [named]}
    assert made["tool_choice"] == {"type": "allowed_tools", "allowed_tools": allowed}
    assert chat(tool_choice={"type": "function", "name": "add"})["tool_choice"] == named
    assert chat(tool_choice="required")["tool_choice"] == "required"


def test_a_schema_goes_one_level_deeper() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    described = {"name": "n", "schema": {"type": "object"}, "strict": True}
    made = chat(text={"format": wanted})["response_format"]
    assert made == {"type": "json_schema", "json_schema": described}
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in chat(text={"format": {"type": "text"}})


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
_KINDS = (
    *("message", "function_call", "custom_tool_call", "function_call_output", "reasoning"),
    *("input_text", "output_text", "input_image", "input_file", "refusal", "function", "custom"),
    *("allowed_tools", "json_schema", "json_object", "text", "grammar"),
)
_KEYS = (
    *("role", "content", "call_id", "name", "arguments", "input", "output", "text", "image_url"),
    *("file_id", "file_data", "tools", "mode", "schema", "format", "id", "status"),
)
_typed = st.deferred(
    lambda: st.builds(
        lambda kind, rest: {**rest, **({"type": kind} if kind else {})},
        st.sampled_from(_KINDS) | st.none(),
        st.dictionaries(
            st.sampled_from(_KEYS),
            st.sampled_from(["user", "assistant", "a"]) | _json | st.lists(_typed, max_size=2),
            max_size=4,
        ),
    )
)
_bodies = st.fixed_dictionaries(
    {"input": st.text(max_size=3) | st.lists(_typed | _json, max_size=3)},
    optional={
        "tools": st.lists(_typed | _json, max_size=2) | _json,
        "tool_choice": _typed | _json,
        "text": st.fixed_dictionaries({"format": _typed | _json}) | _json,
        **dict.fromkeys(("instructions", "reasoning", "include", "metadata", "stop"), _json),
        **dict.fromkeys(("stream_options", "stream_aligner", "truncation", "unknown"), _json),
    },
)


@examples(max_examples=300, deadline=None)
@given(_bodies)
def test_anything_is_read_or_refused(fields: dict[str, Any]) -> None:
    refused = None
    try:
        chat(**fields)
    except RequestError as error:
        refused = error
    if refused is not None:
        assert (refused.status, bool(refused.param)) == (400, True)
        return
    kept = listed(items_of(fields["input"]), "k")
    assert page(orjson.loads(orjson.dumps(kept)), {})["data"]


_IN = [{"type": "message", "role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [*_IN, {"role": "user"}]}, "input[1].content"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": 3}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "a", "arguments": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, "tools[1].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": []}, "context_management"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["reasoning.encrypted_content", "x"]}, "include[1]"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 3}}, "metadata.a"),
        ({"stream": "yes"}, "stream"),
        ({"messages": [USER]}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"stream_aligner": {"mode": "loud"}}, "stream_aligner.mode"),
    ],
)
def test_what_is_wrong_or_cannot_be_served_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        chat(**fields)
    assert raised.value.status == 400
    assert raised.value.param == param
    assert f"'{param}" in raised.value.message


def test_listed_items_have_ids_and_parts_and_come_in_pages() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc_1"}
    items = listed([USER, {"role": "assistant", "content": "b"}, call], "k")
    assert [item["id"] for item in items] == ["msg_k_in0", "msg_k_in1", "fc_1"]
    assert items[0]["content"] == [{"type": "input_text", "text": "a"}]
    assert items[1]["content"][0]["type"] == "output_text"
    newest = page(items, {"limit": "2"})
    assert [item["id"] for item in newest["data"]] == ["fc_1", "msg_k_in1"]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (
        "fc_1",
        "msg_k_in1",
        True,
    )
    rest = page(items, {"after": "msg_k_in1"})
    assert [item["id"] for item in rest["data"]] == ["msg_k_in0"]
    assert rest["has_more"] is False
    assert page(items, {"order": "asc"})["data"][0]["id"] == "msg_k_in0"
    for query in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "none"}):
        with pytest.raises(RequestError) as raised:
            page(items, query)
        assert raised.value.param == next(iter(query))
