"""Reading chat chunks: what common servers do is understood, anything else is garbled."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import UpstreamGarbled, UpstreamRejected
from stream_aligner_proxy.core.records import Chunk, Usage
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.chunks import ChunkReader
from stream_aligner_proxy.upstream.rejections import Refusals


def read(*frames: Any, prefix: str = "", event: str = "") -> list[Chunk]:
    reader = ChunkReader(Refusals("main"), prefix)
    events = [SseEvent(orjson.dumps(frame), event) for frame in frames]
    return [chunk for e in events for chunk in reader.read(e)]


def delta(finish: str | None = None, usage: int | None = None, **fields: Any) -> dict[str, Any]:
    frame: dict[str, Any] = {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
    if usage is not None:
        frame["usage"] = {"prompt_tokens": 4, "completion_tokens": usage}
    return frame


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (delta(content="Hi"), [Chunk("Hi")]),
        (delta(content="Hi", refusal=None, tool_calls=[]), [Chunk("Hi")]),
        (delta(content="Hi", token_id=330, final=False), [Chunk("Hi")]),
        (delta(content="Hi", text="Hi", output=["Hi"], x={"y": "Hi"}), [Chunk("Hi")]),
        (delta(role="assistant", content=""), []),
        (delta(role="assistant", content=None), []),
        (delta(reasoning="hm"), [Chunk(part={"reasoning": "hm"})]),
        (delta(refusal="no"), [Chunk(part={"refusal": "no"})]),
        (delta(audio={"id": 1}), [Chunk(part={"audio": {"id": 1}})]),
        (
            delta(content="Hi", reasoning_content="hm"),
            [Chunk(part={"reasoning_content": "hm"}, tokens=0), Chunk("Hi")],
        ),
        (
            delta("tool_calls", content="Hi", tool_calls=[{"index": 0}]),
            [
                Chunk("Hi"),
                Chunk(part={"tool_calls": [{"index": 0}]}, finish_reason="tool_calls", tokens=0),
            ],
        ),
        (delta("stop"), [Chunk(finish_reason="stop", tokens=0)]),
        (delta("stop", content="."), [Chunk(".", finish_reason="stop")]),
        (delta(content=[{"type": "text", "text": "Hi"}]), [Chunk("Hi")]),
        (delta(content=["Hi", {"type": "output_text", "output_text": "Ho"}]), [Chunk("Hi")]),
        (
            delta(content=[{"type": "thinking", "thinking": []}, {"type": "x", "x": "Ho"}]),
            [Chunk(part={"content": [{"type": "thinking", "thinking": []}]})],
        ),
        ({"choices": [{"index": 0, "finish_reason": "stop"}]},
         [Chunk(finish_reason="stop", tokens=0)]),
        ({"choices": [], "prompt_filter_results": []}, []),
        ({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "cost": 1}},
         [Chunk(usage=Usage(4, 2, {"cost": 1}), tokens=2)]),
        ({"choices": [], "usage": {"prompt_tokens": None}}, [Chunk(usage=Usage(0, 0), tokens=0)]),
    ],
)  # fmt: skip
def test_common_chunks_are_understood(frame: Any, expected: list[Chunk]) -> None:
    assert read(frame) == expected


@pytest.mark.parametrize(
    "frame",
    [
        [],
        {},
        {"choices": {}, "x": 1},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": 1}}]},
        {"choices": [{"index": 1, "delta": {}}]},
        {"choices": [{"delta": {}}, {"delta": {}}]},
    ],
)
def test_what_is_not_a_chunk_of_one_choice_is_garbled(frame: Any) -> None:
    with pytest.raises(UpstreamGarbled):
        read(frame)


@pytest.mark.parametrize(
    ("frame", "event", "status"),
    [
        ({"error": {"message": "boom", "code": 400}}, "", 400),
        ({"error": {"message": "boom"}}, "error", 502),
        ({"message": "boom"}, "error", 502),
        ({"object": "error", "message": "boom", "code": "500"}, "", 500),
    ],
)
def test_error_frames_raise_the_error_they_carry(frame: Any, event: str, status: int) -> None:
    with pytest.raises(UpstreamRejected, match="boom") as caught:
        read(frame, event=event)
    assert caught.value.status == status


def test_tokens_follow_the_running_count() -> None:
    frames = [
        delta(usage=0, role="assistant", content=""),
        delta(usage=2, content="Hi"),
        delta(usage=2, content="!"),
        delta("stop", usage=5, content=" you"),
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 5}},
    ]
    assert [chunk.tokens for chunk in read(*frames)] == [0, 2, 0, 3, 0]


def test_a_final_count_does_not_count_again_what_was_guessed() -> None:
    last = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
    chunks = read(delta(content="a"), delta(content="b"), delta("stop"), last)
    assert [chunk.tokens for chunk in chunks] == [1, 1, 0, 1]


@given(
    prefix=st.text("ab ", min_size=1, max_size=6),
    said=st.text("ab ", max_size=12),
    repeats=st.booleans(),
    cuts=st.lists(st.integers(0, 18), max_size=6),
)
def test_a_repeated_prefix_is_dropped_however_it_is_cut_and_other_text_is_kept(
    prefix: str, said: str, repeats: bool, cuts: list[int]
) -> None:
    text = prefix + said if repeats else said
    expected = text.removeprefix(prefix)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    frames = [delta(content=text[a:b]) for a, b in pairwise(edges)]
    got = read(*frames, delta("stop"), prefix=prefix)
    assert "".join(chunk.text for chunk in got) == expected
    assert got[-1].finish_reason == "stop"


def test_what_is_told_of_the_reply_comes_once_and_log_probabilities_before_their_text():
    reader = ChunkReader(Refusals("u", None))
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    frame = {
        "service_tier": "flex",
        "system_fingerprint": None,
        "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [entry]}}],
    }
    chunks = [*reader.read_object(frame), *reader.read_object(frame)]
    told = [(chunk.about, list(chunk.logprobs), chunk.text, chunk.tokens) for chunk in chunks]
    about = {"service_tier": "flex"}
    spoken = [(None, [entry], "", 0), (None, [], "a", 1)]
    assert told == [(about, [], "", 0), *spoken, *spoken]
    for odd in ("x", {"content": "x"}, {"content": [1]}, []):
        frame["choices"][0]["logprobs"] = odd
        assert [chunk.text for chunk in reader.read_object(frame)] == ["a"]
