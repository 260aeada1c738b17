"""Pass-through: complete frames or one JSON body, with the same errors as a branch."""

import asyncio

import orjson
import pytest

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
from tests.upstream.test_client import REPLY, chat, scripted

pytestmark = pytest.mark.anyio
BODY = {**chat().body, "stream": True, "stream_options": {"include_usage": True}}


async def relay(upstream: HttpUpstream, into: list[bytes], body: object = None) -> None:
    sent = orjson.dumps(BODY if body is None else body)
    async with upstream.relay(sent, {}, stream=True) as relayed:
        assert relayed.body is None
        assert relayed.headers["content-type"].startswith("text/event-stream")
        async for frame in relayed.frames:
            into.append(frame)


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
    async with scripted(Rule(REPLY, fault=fault)) as (upstream, app):
        frames: list[bytes] = []
        with pytest.raises(error):
            await relay(upstream, frames)
        await app.until(lambda a: a.running == 0)
    for frame in frames:
        assert frame.endswith(b"\n\n")
        orjson.loads(frame[6:])


class Bytes:
    """An exchange that gives `pieces`, then ends; notes how long each read would wait."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [*pieces]
        self.waits: list[float | None] = []

    async def read(self, at_most: float | None = None) -> bytes | None:
        self.waits.append(at_most)
        return self.pieces.pop(0) if self.pieces else None


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
    assert exchange.waits[:2] == [None, None], "the second choice may take its time"
    assert exchange.waits[2] is not None


async def test_a_cancelled_relay_closes_the_connection_at_once() -> None:
    async with scripted(Rule(REPLY, fault=Fault(stall=1))) as (upstream, app):
        task = asyncio.create_task(relay(upstream, []))
        await app.until(lambda a: a.opened == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.until(lambda a: a.running == 0, seconds=1)
