"""The events of a message, read as the official SDK reads them, are the whole message. Pure."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stream_aligner_proxy.api.faces.messages import MESSAGES
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

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


COUNTS = Usage(10, 5)


def finished(reason: str = "stop", usage: Usage | None = COUNTS) -> Finished:
    return Finished(reason, usage, Cost(branches=1), Mode.STREAM, "prefill")


def streamed(
    deliveries: list[Delivery], end: Finished | None = None, provenance: bool = False
) -> list[dict[str, Any]]:
    """The events of a stream, whose order is checked."""
    end = end or finished()
    writer = MESSAGES.events(plan(provenance=provenance))
    written = [writer.first(), *(writer.delivery(one, 0) for one in deliveries)]
    written += [writer.finished(end, 0), writer.last([end])]
    found = []
    for event in events(written):
        data = orjson.loads(event.data)
        assert event.name == data["type"]
        found.append(data)
    in_order(found)
    return found


def in_order(found: list[dict[str, Any]]) -> None:
    """A start, blocks one after another, one `message_delta`, the end."""
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    count, running = 0, False
    for event in found[1:-2]:
        assert event["index"] == (count if event["type"] == "content_block_start" else count - 1)
        match event["type"]:
            case "content_block_start":
                assert not running
                running, count = True, count + 1
            case "content_block_delta":
                assert running
            case "content_block_stop":
                assert running
                running = False
            case kind:
                raise AssertionError(kind)
    assert not running


def accumulated(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the SDK makes of a stream."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in found:
        snapshot = accumulate_event(
            event=EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=buffers
        )
    return comparable(snapshot)


def comparable(message: Message) -> dict[str, Any]:
    said = message.model_dump(exclude={"id", "stream_aligner"}, exclude_none=True)
    return {**said, "content": [block for block in said["content"] if block.pop("id", 1)]}


def whole(
    deliveries: list[Delivery], end: Finished | None = None, provenance: bool = False
) -> dict[str, Any]:
    gatherer = MESSAGES.whole(plan(provenance=provenance))
    for one in deliveries:
        gatherer.add(one, 0)
    said: dict[str, Any] = orjson.loads(gatherer.completion([end or finished()]))
    return said


def piece(index: int | None, arguments: str = "", **call: str) -> Delivery:
    name = call.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    told = {"function": function, **call}
    if index is not None:
        told["index"] = index
    return Delivery(part={"tool_calls": [told]})


def thought(text: str, field: str = "reasoning_content") -> Delivery:
    return Delivery(part={field: text})


def sentence(index: int, text: str, original: str | None = None) -> Delivery:
    unit = Committed(index, text if original is None else original, text, "keep", 0)
    return Delivery(text=text, unit=unit)


WORDS = st.text('ab 0\n"\\{é✓😀', min_size=1, max_size=6)
OBJECTS = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers(0, 9) | WORDS, max_size=3)


@st.composite
def replies(draw: st.DrawFn) -> tuple[list[Delivery], list[dict[str, Any]], list[str]]:
    """Deliveries, the inputs of the tool calls in them, and the texts."""
    said: list[Delivery] = []
    inputs: list[dict[str, Any]] = []
    texts: list[str] = []
    number = 0
    for kind in draw(st.lists(st.sampled_from("tttsqrxc"), max_size=6)):
        word = draw(WORDS)
        match kind:
            case "t":
                texts.append(word)
                said.append(Delivery(text=word))
            case "s":
                texts.append(word)
                said.append(sentence(number, word))
                if draw(st.booleans()):
                    said.append(sentence(number, "", word))
            case "q":
                field = draw(st.sampled_from(["reasoning_content", "reasoning"]))
                said += [thought(word, field), thought(draw(WORDS), field)]
            case "r":
                signed = {"type": "thinking", "thinking": word, "signature": "sig"}
                said += [thought(word), Delivery(part={"thinking_blocks": [signed]})]
            case "x":
                block = {"type": "redacted_thinking", "data": word}
                said.append(Delivery(part={"thinking_blocks": [block]}))
            case "c":
                calls = draw(st.lists(OBJECTS, min_size=1, max_size=3))
                inputs += calls
                said += draw(called(calls, number))
                number += len(calls)
    return said, inputs, texts


@st.composite
def called(draw: st.DrawFn, calls: list[dict[str, Any]], number: int) -> list[Delivery]:
    """The pieces of tool calls, one after another or mixed."""
    each = []
    for i, given_input in enumerate(calls, number):
        text = orjson.dumps(given_input).decode()
        at = draw(st.integers(0, len(text)))
        each.append(
            [piece(i, id=f"call_{i}", name=f"f{i}"), piece(i, text[:at]), piece(i, text[at:])]
        )
    if draw(st.booleans()):
        return [one for pieces in each for one in pieces]
    return [one for pieces in zip(*each, strict=True) for one in pieces]


@examples(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    reply=replies(),
    reason=st.sampled_from(["stop", "length", "tool_calls", "content_filter", "odd"]),
    cached=st.none() | st.integers(0, 10),
    provenance=st.booleans(),
)
def test_what_the_sdk_makes_of_a_stream_is_the_whole_message(
    reply: tuple[list[Delivery], list[dict[str, Any]], list[str]],
    reason: str,
    cached: int | None,
    provenance: bool,
) -> None:
    deliveries, inputs, texts = reply
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    end = finished(reason, Usage(10, 5, details))
    found = streamed(deliveries, end, provenance)
    said = whole(deliveries, end, provenance)
    assert accumulated(found) == comparable(Message.model_validate(said))
    blocks = said["content"]
    assert [b["input"] for b in blocks if b["type"] == "tool_use"] == inputs
    assert "".join(b["text"] for b in blocks if b["type"] == "text") == "".join(texts)
    assert all(b["text"] for b in blocks if b["type"] == "text")
    told = [e["stream_aligner"] for e in found if "stream_aligner" in e]
    in_stream = [one["sentence"] for one in told if "sentence" in one]
    in_stream += told[-1].get("sentences", [])
    units = [d.unit for d in deliveries if d.unit is not None] if provenance else []
    assert [(s["index"], s["text"]) for s in in_stream] == [(u.index, u.text) for u in units]
    assert said["stream_aligner"].get("sentences", []) == in_stream


def test_thoughts_come_first_and_are_signed_with_where_they_came_from() -> None:
    said = whole([thought("Let me ", "reasoning"), thought("see.", "reasoning"), Delivery("Yes.")])
    assert said["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": "stream_aligner:reasoning"},
        {"type": "text", "text": "Yes."},
    ]


def test_thoughts_that_servers_send_twice_or_as_parts_come_once() -> None:
    twice = Delivery(part={"reasoning": "Hm.", "reasoning_content": "Hm."})
    details = Delivery(part={"reasoning_details": [{"type": "reasoning.text", "text": "Well."}]})
    mistral = [{"type": "thinking", "thinking": [{"type": "text", "text": "So."}]}]
    both = Delivery(
        part={"reasoning_content": "A", "thinking_blocks": [{"type": "thinking", "thinking": "A"}]}
    )
    for delivery, text in (
        (twice, "Hm."),
        (details, "Well."),
        (Delivery(part={"content": mistral}), "So."),
        (both, "A"),
    ):
        assert [block["thinking"] for block in whole([delivery])["content"]] == [text]


def test_a_signed_thought_keeps_its_signature() -> None:
    signed = {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}
    delivered = [thought("Hm."), Delivery(part={"thinking_blocks": [signed]}), Delivery("Yes.")]
    assert whole(delivered)["content"][0] == signed


def test_calls_without_a_number_or_all_of_the_same_number_are_calls_of_their_own() -> None:
    for number in (None, 0):
        calls = [piece(number, '{"a": 1}', id=f"c{i}", name="f") for i in range(2)]
        blocks = whole(calls)["content"]
        assert [(b["id"], b["input"]) for b in blocks] == [("c0", {"a": 1}), ("c1", {"a": 1})]


def test_a_call_without_an_id_gets_one() -> None:
    assert whole([piece(0, "{}", name="now")])["content"][0]["id"].startswith("toolu_")


def test_a_call_that_the_limit_cut_has_the_input_so_far() -> None:
    delivered = [piece(0, '{"a": 1, "b": [2', id="c", name="f")]
    end = finished("length")
    said = whole(delivered, end)
    assert said["stop_reason"] == "max_tokens"
    assert said["content"][0]["input"] == {"a": 1, "b": [2]}
    assert accumulated(streamed(delivered, end)) == comparable(Message.model_validate(said))


@pytest.mark.parametrize("arguments", ["[1]", '"text"', "{]", "nothing"])
def test_a_call_without_an_object_is_an_upstreams_mistake(arguments: str) -> None:
    delivered = [piece(0, arguments, id="c", name="f")]
    for write in (whole, streamed):
        with pytest.raises(UpstreamGarbled):
            write(delivered)


def test_a_call_that_goes_on_after_its_end_is_an_upstreams_mistake() -> None:
    first, rest = piece(0, "{}", id="c", name="f"), piece(0, '"a": 1}')
    with pytest.raises(UpstreamGarbled):
        whole([first, Delivery("Well."), rest])


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("something new", "end_turn"),
    ],
)
def test_why_it_ended(reason: str, said: str) -> None:
    assert whole([Delivery("Hm.")], finished(reason))["stop_reason"] == said


def test_a_call_ends_a_turn_whatever_the_upstream_calls_it() -> None:
    assert whole([piece(0, "{}", id="c", name="f")])["stop_reason"] == "tool_use"


def test_a_refusal_is_text_and_the_reason() -> None:
    said = whole([Delivery(part={"refusal": "I will not."})])
    assert said["content"] == [{"type": "text", "text": "I will not."}]
    assert said["stop_reason"] == "refusal"


def test_usage_is_told_in_anthropics_names() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    said = whole([Delivery("Hm.")], finished(usage=Usage(10, 5, details)))
    assert said["usage"] == {
        "input_tokens": 2,
        "output_tokens": 5,
        "cache_read_input_tokens": 8,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    assert whole([], finished(usage=None))["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_a_sentence_without_text_waits_for_a_text_or_for_the_end() -> None:
    deleted, kept = sentence(0, "", "Bad. "), sentence(1, "Good.")
    after = sentence(2, "", " Late.")
    call = piece(0, "{}", id="c", name="f")
    found = streamed([deleted, kept, call, after], provenance=True)
    deltas = [e for e in found if e["type"] == "content_block_delta" and "stream_aligner" in e]
    assert [(e["delta"]["text"], e["stream_aligner"]["sentence"]["index"]) for e in deltas] == [
        ("", 0),
        ("Good.", 1),
    ]
    assert [s["index"] for s in found[-2]["stream_aligner"]["sentences"]] == [2]
    assert whole([deleted])["content"] == []


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "a", "{}", '{"a":', "["]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["index", "id", "type", "function", "name", "arguments", "text", "thinking",
                 "signature", "data"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip
CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "index": st.integers(0, 2) | JUNK,
            "id": st.sampled_from(["a", "b"]) | JUNK,
            "function": st.fixed_dictionaries(
                {}, optional={"name": st.just("f") | JUNK, "arguments": JUNK}
            ),
        },
    ),
    max_size=3,
)
PARTS = st.dictionaries(
    st.sampled_from(["reasoning", "thinking_blocks", "reasoning_details", "content", "refusal"]),
    JUNK,
    max_size=2,
) | st.builds(lambda calls: {"tool_calls": calls}, CALLS | JUNK)


@examples(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(parts=st.lists(PARTS.map(lambda part: Delivery(part=part)) | WORDS.map(Delivery)))
def test_whatever_an_upstream_sends_is_a_valid_message_or_its_mistake(
    parts: list[Delivery],
) -> None:
    try:
        said = whole(parts)
    except UpstreamGarbled:
        with pytest.raises(UpstreamGarbled):
            streamed(parts)
        return
    assert accumulated(streamed(parts)) == comparable(Message.model_validate(said))
