"""The Responses API's events and its whole object, made from any deliveries: pure."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from stream_aligner_proxy.api.faces.responses import ResponseEvents, WholeResponse
from stream_aligner_proxy.api.faces.responses_object import Asked, told
from stream_aligner_proxy.api.faces.responses_schemas import read
from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import (
    Committed,
    Cost,
    Delivery,
    Finished,
    Mode,
    Usage,
)
from tests.api.plans import plan
from tests.strict import events

_MODELS = {
    kind: model
    for model in get_args(get_args(ResponseStreamEvent)[0])
    for kind in get_args(model.model_fields["type"].annotation)
}
# What grows, by the delta that makes it grow.
_GROWS = {
    "response.output_text.delta": "text",
    "response.reasoning_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}

PLAN = plan(provenance=True)


def asked(obfuscated: bool = False, **fields: Any) -> Asked:
    body = read({"model": "m", "input": "a", **fields})
    return Asked("k", 1, told(body, kept=True), obfuscated)


def finished(reason: str = "stop") -> Finished:
    usage = Usage(3, 4, {"completion_tokens_details": {"reasoning_tokens": 2}})
    return Finished(reason, usage, Cost(branches=1), Mode.STREAM, "ids")


def streamed(
    deliveries: list[Delivery], reason: str = "stop", wanted: Asked | None = None
) -> list[dict[str, Any]]:
    made = ResponseEvents(PLAN, wanted or asked(), lambda _: None, lambda: 2.5)
    # In the order of the response: `first` is asked for when there is something to write.
    written = [made.delivery(delivery) for delivery in deliveries] + [
        made.finished(finished(reason))
    ]
    return read_events([made.first(), *written, made.last([finished(reason)])])


def read_events(written: list[bytes]) -> list[dict[str, Any]]:
    found = []
    for event in events(written):
        data = orjson.loads(event.data)
        assert event.name == data["type"]
        found.append(data)
    assert [data["sequence_number"] for data in found] == list(range(len(found)))
    return found


def whole(deliveries: list[Delivery], reason: str = "stop") -> dict[str, Any]:
    made = WholeResponse(PLAN, asked(), lambda _: None, lambda: 2.5)
    for delivery in deliveries:
        made.add(delivery)
    return orjson.loads(made.completion([finished(reason)]))


def unit(text: str) -> Committed:
    return Committed(0, text, text, "keep", 0)


_name = st.sampled_from(["add", "look", ""])
_growth = st.text('{}"a1: ', max_size=5) | st.just('{"a": 1}')
_piece = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2),
        "id": st.sampled_from(["c1", "c2", ""]) | st.none(),
        "function": st.fixed_dictionaries({}, optional={"name": _name, "arguments": _growth}),
        "custom": st.fixed_dictionaries({}, optional={"name": _name, "input": _growth}),
    },
)
_cited = st.just({"type": "url_citation", "url_citation": {"url": "u", "end_index": 3}})
_part = st.fixed_dictionaries(
    {},
    optional={
        "reasoning_content": st.text(max_size=4),
        "reasoning": st.text(max_size=4),
        "refusal": st.text(max_size=4),
        "tool_calls": st.lists(_piece, max_size=3),
        "annotations": st.lists(_cited, max_size=1),
        "content": st.just([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        "unknown": st.integers(),
    },
)
_deliveries = st.lists(
    st.builds(Delivery, text=st.text(max_size=5))
    | st.builds(lambda text: Delivery(text=text, unit=unit(text)), st.text(max_size=5))
    | st.builds(Delivery, part=_part),
    max_size=8,
)
_reasons = st.sampled_from(["stop", "length", "content_filter", "tool_calls"])


@examples(max_examples=150, deadline=None)
@given(_deliveries, _reasons)
def test_the_last_event_holds_what_the_whole_object_is(
    deliveries: list[Delivery], reason: str
) -> None:
    last = streamed(deliveries, reason)[-1]
    incomplete = reason in ("length", "content_filter")
    assert last["type"] == f"response.{'incomplete' if incomplete else 'completed'}"
    assert last["response"] == whole(deliveries, reason)
    texts = [
        part["text"]
        for item in last["response"]["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    ]
    assert "".join(texts) == "".join(delivery.text for delivery in deliveries)


@examples(max_examples=150, deadline=None)
@given(_deliveries, _reasons)
def test_deltas_add_up_to_the_items_and_nothing_comes_after_its_end(
    deliveries: list[Delivery], reason: str
) -> None:
    found = streamed(deliveries, reason)
    output = found[-1]["response"]["output"]
    grown: dict[tuple[int, int | None], str] = {}
    open_items: set[int] = set()
    open_parts: dict[int, int] = {}
    for event in found[2:-1]:
        kind, index = event["type"], event["output_index"]
        if kind == "response.output_item.added":
            assert index == len(open_items | {i for i, _ in grown} | set(open_parts))
            open_items.add(index)
            grown.setdefault((index, None), "")
            assert event["item"]["id"] == output[index]["id"]
            continue
        assert index in open_items, event
        if kind == "response.output_item.done":
            assert event["item"] == output[index]
            assert index not in open_parts
            open_items.remove(index)
        elif kind == "response.content_part.added":
            assert index not in open_parts
            open_parts[index] = event["content_index"]
            grown[index, event["content_index"]] = ""
        elif kind == "response.content_part.done":
            assert open_parts.pop(index) == event["content_index"]
            assert event["part"] == output[index]["content"][event["content_index"]]
        elif kind in _GROWS:
            assert event.get("content_index") == open_parts.get(index)
            grown[index, event.get("content_index")] += event["delta"]
        assert event.get("item_id", output[index]["id"]) == output[index]["id"]
    assert not open_items
    for (index, part), text in grown.items():
        if part is not None:
            value = output[index]["content"][part]
            assert text == value.get("text", value.get("refusal"))
        elif output[index]["type"] not in ("message", "reasoning"):
            assert text == output[index].get("arguments", output[index].get("input"))


@examples(max_examples=60, deadline=None)
@given(_deliveries)
def test_the_sdk_puts_the_same_together(deliveries: list[Delivery]) -> None:
    found = streamed(deliveries)
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    for data in found:
        _MODELS[data["type"]].model_validate(data)
        state.handle_event(construct_type(type_=ResponseStreamEvent, value=data))
    snapshot = state._ResponseStreamState__current_snapshot
    assert state._completed_response is not None
    for item, final in zip(snapshot.output, found[-1]["response"]["output"], strict=True):
        assert item.type == final["type"]
        if item.type == "message":
            for part, value in zip(item.content, final["content"], strict=True):
                if part.type == "output_text":
                    assert part.text == value["text"]
        elif item.type == "function_call":
            assert (item.arguments, item.call_id) == (final["arguments"], final["call_id"])
    Response.model_validate(whole(deliveries))


def types(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


def test_reasoning_text_and_a_call_come_as_three_items_in_the_documented_order() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "add"}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    found = streamed(
        [
            Delivery(part={"reasoning_content": "Hm."}),
            Delivery(part={"reasoning_content": " Well."}),
            Delivery(text="Let me add."),
            Delivery(part={"tool_calls": [call]}),
            Delivery(part={"tool_calls": [more]}),
        ],
        "tool_calls",
    )
    assert types(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    reasoning, message, called = found[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm. Well."}]
    assert message["content"][0]["text"] == "Let me add."
    assert (called["call_id"], called["name"], called["arguments"]) == ("c", "add", "{}")
    assert found[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_calls_written_at_once_keep_their_own_arguments() -> None:
    def piece(index: int, text: str, name: str = "") -> Delivery:
        function = {"arguments": text} | ({"name": name} if name else {})
        return Delivery(part={"tool_calls": [{"index": index, "id": "same", "function": function}]})

    output = whole([piece(0, '{"a"', "x"), piece(1, "{", "y"), piece(0, ": 1}"), piece(1, "}")])
    first, second = output["output"]
    assert (first["arguments"], second["arguments"]) == ('{"a": 1}', "{}")
    assert first["call_id"] != second["call_id"]


def test_one_call_after_the_other_ends_before_the_next_begins() -> None:
    def call(index: int) -> dict[str, Any]:
        return {"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": "{}"}}

    found = streamed(
        [Delivery(part={"tool_calls": [call(0)]}), Delivery(part={"tool_calls": [call(1)]})]
    )
    one = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert types(found)[2:-1] == one + one


def test_a_reply_cut_short_is_incomplete_and_says_why() -> None:
    output = whole([Delivery(part={"reasoning": "Hm"}), Delivery(text="Half")], "length")
    assert output["status"] == "incomplete"
    assert output["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in output["output"]] == ["completed", "incomplete"]
    assert whole([], "content_filter")["incomplete_details"] == {"reason": "content_filter"}


def test_sentences_come_with_their_text_and_those_without_at_the_next_or_in_the_object() -> None:
    def deleted(index: int) -> Delivery:
        return Delivery(unit=Committed(index, "No.", "", "replace", 0))

    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    found = streamed(
        [
            deleted(0),
            Delivery(text="Yes.", unit=Committed(1, "Yes.", "Yes.", "keep", 0)),
            deleted(2),
            Delivery(part={"tool_calls": [call]}),
            deleted(3),
        ]
    )
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [event["delta"] for event in deltas] == ["", "Yes.", ""]
    assert [event["stream_aligner"]["sentence"]["index"] for event in deltas] == [0, 1, 2]
    told_last = found[-1]["response"]["stream_aligner"]["sentences"]
    assert [sentence["index"] for sentence in told_last] == [0, 1, 2, 3]


def test_a_reply_that_breaks_off_ends_with_an_error_and_the_failed_object() -> None:
    made = ResponseEvents(PLAN, asked(), lambda _: None)
    written = made.delivery(Delivery(text="Half"))
    found = read_events([made.first(), written, made.failed(UpstreamGarbled("it broke off"))])
    error, last = found[-2:]
    assert (error["type"], error["code"], error["message"]) == (
        "error",
        "upstream_garbled",
        "it broke off",
    )
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "it broke off"}
    assert last["response"]["output"][0]["content"][0]["text"] == "Half"
    _MODELS["error"].model_validate(error)
    Response.model_validate(last["response"])


@pytest.mark.parametrize("obfuscated", [False, True])
def test_obfuscation_makes_every_delta_as_long_as_the_next(obfuscated: bool) -> None:
    found = streamed(
        [Delivery(text="a"), Delivery(text="b" * 40), Delivery(text="c" * 64)],
        wanted=asked(obfuscated),
    )
    deltas = [event for event in found if "delta" in event]
    lengths = {len(event["delta"] + event.get("obfuscation", "")) for event in deltas}
    assert lengths == ({64} if obfuscated else {1, 40, 64})


def test_the_object_repeats_what_was_asked() -> None:
    tools = [{"type": "function", "name": "f"}]
    fields: dict[str, Any] = {
        "instructions": "Be kind.",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    response = streamed([Delivery(text="a")], wanted=asked(**fields))[-1]["response"]
    for name in ("instructions", "max_output_tokens", "temperature", "tool_choice", "metadata"):
        assert response[name] == fields[name]
    assert response["parallel_tool_calls"] is False
    assert response["text"] == fields["text"]
    assert response["reasoning"] == fields["reasoning"]
    assert response["tools"] == [
        {**tools[0], "description": None, "parameters": None, "strict": None}
    ]
    assert (response["created_at"], response["completed_at"]) == (1, 2)
