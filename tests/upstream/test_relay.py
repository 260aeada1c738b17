"""Pass-through: complete frames or one JSON body, with the same errors as a branch."""

import asyncio
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import (
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
)
from stream_aligner_proxy.demo.script import Fault, Rule
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.streams import FrameStream
from tests.upstream.test_client import LONG, REPLY, SHORT, chat, scripted

pytestmark = pytest.mark.anyio
BODY = {**chat().body, "stream": True, "stream_options": {"include_usage": True}}


async def relay(upstream: HttpUpstream, into: list[bytes], body: object = None) -> None:
    sent = orjson.dumps(BODY if body is None else body)
    async with upstream.relay(sent, {}, stream=True) as relayed:
        assert relayed.body is None
        assert relayed.headers["content-type"].startswith("text/event-stream")
        async for frames in relayed.frames:
            assert frames.endswith(b"\n\n")
            into.extend(frame + b"\n\n" for frame in frames.split(b"\n\n")[:-1])


async def test_a_relayed_stream_is_what_the_upstream_sent() -> None:
    async with scripted(Rule(REPLY, fault=Fault(newline="\r\n"))) as (upstream, app):
        frames: list[bytes] = []
        await relay(upstream, frames)
    assert app.requests[0].body == BODY
    assert all(frame.startswith(b"data: ") and frame.endswith(b"\n\n") for frame in frames)
    assert frames[-1] == b"data: [DONE]\n\n"
    parsed = [orjson.loads(frame[6:]) for frame in frames[:-1]]
    text = "".join(c["delta"].get("content", "") for f in parsed for c in f["choices"])
    assert text == REPLY
    assert parsed[-1]["usage"]["completion_tokens"] > 0


async def test_a_relayed_whole_reply_is_one_body() -> None:
    async with scripted() as (upstream, _), upstream.relay(chat().body, {}, stream=False) as got:
        assert got.body is not None
        assert orjson.loads(got.body)["choices"][0]["message"]["content"] == REPLY
        assert [frame async for frame in got.frames] == []


async def test_a_missing_done_is_added_after_a_finish_reason() -> None:
    async with scripted(Rule(REPLY, fault=Fault(done=False))) as (upstream, _):
        frames: list[bytes] = []
        await relay(upstream, frames)
    assert frames[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(reset=2), UpstreamError),
        (Fault(stall=2), UpstreamTimeout),
        (Fault(stall="headers"), UpstreamTimeout),
        (Fault(finish=False, done=False), UpstreamGarbled),
        (Fault(error_after=2), UpstreamRejected),
        (Fault(status=429, body={"error": {"message": "slow"}}), UpstreamRejected),
        (Fault(garbage_after=2, garbage='data: {"cut', reset=2), UpstreamError),
    ],
)
async def test_faults_are_errors_and_never_leave_half_a_frame(
    fault: Fault, error: type[UpstreamError]
) -> None:
    timeouts = SHORT if fault.stall is not None else LONG
    async with scripted(Rule(REPLY, fault=fault), timeouts=timeouts) as (upstream, app):
        frames: list[bytes] = []
        with pytest.raises(error):
            await relay(upstream, frames)
        await app.until(lambda a: a.running == 0)
    for frame in frames:
        assert frame.endswith(b"\n\n")
        orjson.loads(frame[6:])


class Bytes:
    """An exchange that gives `pieces`, then ends; notes after how many reads it was in a hurry."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces]
        self.reads = 0
        self.hurried: int | None = None

    def hurry(self, seconds: float) -> None:
        if self.hurried is None:
            self.hurried = self.reads

    async def read(self) -> bytes | None:
        self.reads += 1
        return self.pieces.pop(0) if self.pieces else None


TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
# Text that looks like what is looked for, a comment, an event of several lines, one with a name.
FRAMES = st.sampled_from(
    [
        TOKEN % b"Anna",
        TOKEN % "caf\u00e9 \u2028 ".encode(),
        TOKEN % b'\\"error\\": [DONE]',
        TOKEN % b"data: [DONE]",
        b": ping\n\n",
        b'event: note\ndata: {"a":\ndata: 1}\n\n',
    ]
)


@given(st.lists(FRAMES, max_size=12), st.lists(st.integers(0, 2000), max_size=12))
def test_the_bytes_are_the_upstreams_own_however_they_were_cut(
    frames: list[bytes], cuts: list[int]
) -> None:
    sent = b"".join(frames) + STOP + DONE
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    exchange = Bytes(*(sent[a:b] for a, b in pairwise(edges)), b"data: too late\n\n")
    got = asyncio.run(all_of(FrameStream(exchange, Refusals("main"))))
    assert b"".join(got) == sent
    assert all(some.endswith(b"\n\n") for some in got)


@given(st.lists(st.integers(0, 400), max_size=8))
def test_an_error_comes_after_whole_frames_only_however_the_bytes_were_cut(cuts: list[int]) -> None:
    error = b'data: {"error":{"message":"broken"}}\n\n'
    sent = TOKEN % b"Anna" + TOKEN % b" has" + error + TOKEN % b"never"
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    stream = FrameStream(Bytes(*(sent[a:b] for a, b in pairwise(edges))), Refusals("main"))
    got: list[bytes] = []
    with pytest.raises(UpstreamRejected, match="broken"):
        asyncio.run(all_of(stream, got))
    assert b"".join(got) == TOKEN % b"Anna" + TOKEN % b" has"


@given(st.integers(1, 100))
def test_half_a_frame_at_the_end_is_dropped_and_told_as_an_error(length: int) -> None:
    half = (TOKEN % b" has")[:length].rstrip(b"\n")
    half = half[: len(TOKEN) - 10]
    stream = FrameStream(Bytes(TOKEN % b"Anna" + half), Refusals("main"))
    got: list[bytes] = []
    with pytest.raises(UpstreamGarbled):
        asyncio.run(all_of(stream, got))
    assert b"".join(got) == TOKEN % b"Anna"


async def test_what_came_at_once_leaves_at_once() -> None:
    exchange = Bytes((TOKEN % b"Anna") * 100, STOP + DONE)
    got = await all_of(FrameStream(exchange, Refusals("main")))
    assert got == [(TOKEN % b"Anna") * 100, STOP + DONE]


async def all_of(stream: FrameStream, into: list[bytes] | None = None) -> list[bytes]:
    got = [] if into is None else into
    async for frames in stream:
        got.append(frames)
    return got


async def test_of_several_choices_each_must_finish() -> None:
    ends = [
        b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n' % number
        for number in (0, 1)
    ]
    refusals = Refusals("main")
    cut = FrameStream(Bytes(ends[0]), refusals, 2)
    assert await anext(cut) == ends[0]
    with pytest.raises(UpstreamGarbled):
        await anext(cut)
    exchange = Bytes(*ends)
    got = [frame async for frame in FrameStream(exchange, refusals, 2)]
    assert got == [*ends, b"data: [DONE]\n\n"]
    assert exchange.hurried == 2, "the second choice may take its time"


async def test_a_cancelled_relay_closes_the_connection_at_once() -> None:
    async with scripted(Rule(REPLY, fault=Fault(stall=1))) as (upstream, app):
        task = asyncio.create_task(relay(upstream, []))
        await app.until(lambda a: a.opened == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.until(lambda a: a.running == 0)
