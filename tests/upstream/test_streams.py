"""What a stream holds when it has failed."""

import gc
import weakref

import pytest

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.sse import MAX_EVENT_BYTES
from stream_aligner_proxy.upstream.chunks import ChunkReader
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.streams import ChunkStream, FrameStream

pytestmark = pytest.mark.anyio


class Bytes(bytearray):
    """Bytes that a weak reference can watch."""


class Endless:
    """Sends one event that has no end. `sent` watches what was read."""

    def __init__(self) -> None:
        self.sent: list[weakref.ref[Bytes]] = []

    async def read(self) -> Bytes:
        data = Bytes(b"data: " * (MAX_EVENT_BYTES // 24))
        self.sent.append(weakref.ref(data))
        return data


@pytest.mark.parametrize("kind", ["chunks", "frames"])
async def test_an_event_without_an_end_is_let_go_of_at_once_and_not_by_the_garbage_collector(kind):
    upstream, refusals = Endless(), Refusals("main")
    gc.collect()
    gc.disable()
    try:
        stream = (
            ChunkStream(upstream, ChunkReader(refusals))
            if kind == "chunks"
            else FrameStream(upstream, refusals)
        )
        with pytest.raises(UpstreamGarbled) as raised:
            await anext(stream)
        assert len(upstream.sent) > 1
        held = [data for data in upstream.sent if data() is not None]
        assert not held
        assert raised.value is not None
    finally:
        gc.enable()
