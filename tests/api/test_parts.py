"""What is not prose: in order, never ahead of text that waits, nothing lost, and the same in a
stream and in a whole reply."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream_aligner_proxy.api.faces.chat import Gathered
from stream_aligner_proxy.core.records import Delivery, Review, Verdict
from stream_aligner_proxy.demo.script import Chunking, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.api.proxy import QUESTION, parse_frames
from tests.api.test_conformance import Raw, chunk
from tests.api.test_fuzz import Standing, standing
from tests.fakes import FunctionAligner

_SOME = examples(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MODES = st.sampled_from(["stream", "whole", "shadow", "off"])
TOOL = {"type": "function", "function": {"name": "add"}}


def two_for_one(review: Review) -> Verdict:
    if "eats one" not in review.sentence:
        return Verdict()
    return Verdict(review.sentence.replace("eats one", "eats two"))


def over(upstream: Any) -> Iterator[Standing]:
    with asyncio.Runner() as runner:
        stack = standing(runner, upstream, FunctionAligner(two_for_one))
        yield runner.run(stack.__aenter__())
        runner.run(stack.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def over_script() -> Iterator[Standing]:
    yield from over(ScriptedUpstream(Script()))


@pytest.fixture(scope="module")
def over_deltas() -> Iterator[Standing]:
    yield from over(Raw([]))


def post(to: Standing, **fields: Any) -> httpx.Response:
    answer = to.post(orjson.dumps({"model": "scripted", "messages": QUESTION, **fields}))
    assert answer.status_code == 200, answer.text
    return answer


def deltas_of(frames: list[Any]) -> dict[int, list[dict[str, Any]]]:
    """By choice, what each delta holds, the role apart."""
    found: dict[int, list[dict[str, Any]]] = {}
    for frame in frames[:-1]:
        for choice in frame["choices"]:
            delta = {k: v for k, v in choice["delta"].items() if k != "role" and v}
            if delta:
                found.setdefault(choice["index"], []).append(delta)
    return found


def finishes(frames: list[Any]) -> dict[int, str]:
    choices = [choice for frame in frames[:-1] for choice in frame["choices"]]
    return {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}


def joined(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together from a stream; empty fields left out."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for name, value in delta.items():
            match name:
                case "tool_calls":
                    for piece in value:
                        call = calls.setdefault(piece["index"], {"function": {}})
                        call |= {k: v for k, v in piece.items() if k in ("id", "type")}
                        add(call["function"], piece.get("function", {}))
                case "function_call":
                    add(message.setdefault(name, {}), value)
                case _:
                    message[name] = message.get(name, "") + value
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def add(into: dict[str, Any], pieces: dict[str, Any]) -> None:
    for name, value in pieces.items():
        into[name] = into.get(name, "") + value


def said(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value and name != "role"}


# --- as real servers order it: thoughts, text, refusal, calls -----------------------------------

CUT = st.builds(Chunking, st.just("random"), st.integers(1, 12), st.integers(0, 99))
SENTENCES = (
    "Anna has 3 apples.", "She eats one.", " So é✓ are left!", "\n\n- a list\n",
    "\n\n```\nx = 1\n```\n",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(SENTENCES), max_size=4).map(" ".join)
ARGUMENTS = st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=3).map(
    lambda value: orjson.dumps(value).decode()
)
CALLS = st.lists(ARGUMENTS, max_size=3).map(
    lambda found: [
        {"id": f"c{i}", "type": "function", "function": {"name": f"f{i}", "arguments": text}}
        for i, text in enumerate(found)
    ]
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    calls = draw(CALLS)
    legacy = None
    if not calls and draw(st.booleans()):
        legacy = {"name": "f", "arguments": draw(ARGUMENTS)}
    return Rule(
        reply=draw(TEXT),
        reasoning=draw(st.sampled_from(["", "Hm. She eats one. Well."])),
        refusal=draw(st.sampled_from(["", "I would rather not. Sorry."])),
        tool_calls=calls,
        function_call=legacy,
        chunk=draw(CUT),
        parts=draw(CUT),
    )


@_SOME
@given(rule=rules(), mode=MODES, n=st.integers(1, 3), tools=st.booleans())
def test_a_whole_reply_is_the_stream_put_together_and_nothing_is_lost(
    over_script: Standing, rule: Rule, mode: str, n: int, tools: bool
) -> None:
    over_script.upstream.script = Script((rule,))
    asked: dict[str, Any] = {"n": n, "stream_aligner": {"mode": mode}}
    if tools:
        asked["tools"] = [TOOL]
    frames = parse_frames(post(over_script, stream=True, **asked).text)
    whole = post(over_script, **asked).json()["choices"]
    deltas = deltas_of(frames)
    text = rule.reply
    if mode in ("stream", "whole"):
        text = text.replace("eats one", "eats two")
    expected = said(
        {
            "content": text,
            "reasoning_content": rule.reasoning,
            "refusal": rule.refusal,
            "function_call": rule.function_call,
            "tool_calls": list(rule.tool_calls),
        }
    )
    assert [choice["index"] for choice in whole] == list(range(n))
    for choice in whole:
        streamed = deltas.get(choice["index"], [])
        assert joined(streamed) == said(choice["message"]) == expected
        assert choice["finish_reason"] == finishes(frames)[choice["index"]]
        in_order(streamed)


def in_order(deltas: list[dict[str, Any]]) -> None:
    """Thoughts before the text, all else behind it, calls cut as their arguments are read."""
    kinds = [name for delta in deltas for name in delta]
    ranks = [{"reasoning_content": 0, "content": 1}.get(kind, 2) for kind in kinds]
    assert ranks == sorted(ranks)


# --- in any order --------------------------------------------------------------------------------

WORDS = st.sampled_from(["One. ", "Two", ". Three", " and ", "four.", "\n\n", "✓", " "])
PART = st.one_of(
    st.sampled_from(["a", "b. "]).map(lambda text: {"reasoning_content": text}),
    st.sampled_from(["a", "b. "]).map(lambda text: {"refusal": text}),
    st.builds(
        lambda index, text: {"tool_calls": [{"index": index, "function": {"arguments": text}}]},
        st.integers(0, 2),
        st.sampled_from(["{", '"a": 1', "}"]),
    ),
)
DELTAS = st.lists(WORDS.map(lambda text: {"content": text}) | PART, max_size=12)


def merged(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts that follow each other as one."""
    found: list[dict[str, Any]] = []
    for delta in deltas:
        if "content" in delta and found and "content" in found[-1]:
            found[-1] = {"content": found[-1]["content"] + delta["content"]}
        else:
            found.append(delta)
    return found


def whole_answer_first(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In mode `whole` an answer that has begun is delivered at its end, and then what came amid."""
    texts = [delta for delta in deltas if "content" in delta]
    if not texts:
        return deltas
    at = deltas.index(texts[0])
    behind = [delta for delta in deltas[at:] if "content" not in delta]
    return merged([*deltas[:at], *texts, *behind])


@_SOME
@given(deltas=DELTAS, mode=MODES)
@example(deltas=[{"content": "Two"}, {"refusal": "a"}, {"content": ". Three"}], mode="stream")
@example(deltas=[{"content": "Two"}, {"refusal": "a"}, {"content": ". Three"}], mode="whole")
def test_parts_keep_their_place_in_the_text(
    over_deltas: Standing, deltas: list[dict[str, Any]], mode: str
) -> None:
    frames: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    frames.append(chunk(finish="stop"))
    events = [b"data: " + orjson.dumps(frame) + b"\n\n" for frame in frames]
    over_deltas.upstream.pieces = [*events, b"data: [DONE]\n\n"]
    asked = {"model": "m", "stream_aligner": {"mode": mode}, "tools": [TOOL]}
    told = parse_frames(post(over_deltas, stream=True, **asked).text)
    streamed = deltas_of(told).get(0, [])
    order = whole_answer_first(merged(deltas)) if mode == "whole" else merged(deltas)
    assert merged(streamed) == order
    if mode != "off":  # the upstream would have to answer without a stream
        message = post(over_deltas, **asked).json()["choices"][0]["message"]
        assert joined(streamed) == said(message)


def test_a_whole_reply_grows_its_lists_in_place_and_leaves_the_deltas_as_they_were() -> None:
    gathered, first = Gathered(), [{"text": "a"}]
    gathered.add(Delivery(part={"reasoning_details": first}))
    grown = gathered.message()["reasoning_details"]
    gathered.add(Delivery(part={"reasoning_details": [{"text": "b"}]}))
    assert gathered.message()["reasoning_details"] is grown
    assert grown == [{"text": "a"}, {"text": "b"}]
    assert first == [{"text": "a"}]
