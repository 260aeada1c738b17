"""Slow servers and who leaves: a remote aligner keeps its bounds and leaves nothing running."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from stream_aligner_proxy.aligners.remote_server import Server, new_client
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import trained
from tests.aligners.remotes import (
    asked,
    refusal,
    served,
)
from tests.aligners.test_transformers_engine import CHANGED, KEPT, VERDICTS, same
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]


async def test_a_slow_server_meets_the_deadline_and_is_told_to_stop(folder: Path) -> None:
    server = CompletionServer(trained(), ungated=1)
    async with served(folder, server, timeout=0.3, queue=1) as aligner:
        server.gate = asyncio.Event()
        with pytest.raises(ReviewError, match=r"took longer than 0\.3 s"):
            await aligner.review(asked())
        await server.until(lambda: server.running == 0)
        server.gate.set()
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_no_more_reviews_are_under_way_than_there_are_places(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server, queue=2) as aligner:
        server.gate = asyncio.Event()
        reviews = [asyncio.ensure_future(aligner.review(asked())) for _ in range(5)]
        await server.until(lambda: server.running == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.bodies) == 2
        server.gate.set()
        for review in reviews:
            assert same(await review, VERDICTS[CHANGED])


class Silent:
    """A server that takes a connection and a request, and says nothing."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.arrived.set()
        try:
            while await reader.read(65536):
                pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            self.left.set()


async def cancelled(review: asyncio.Task[Verdict]) -> None:
    review.cancel()
    with pytest.raises(asyncio.CancelledError):
        await review


async def test_leaving_while_waiting_for_a_place_asks_nobody(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server, queue=1) as aligner:
        server.gate = asyncio.Event()
        first = asyncio.ensure_future(aligner.review(asked()))
        await server.until(lambda: server.running == 1)
        second = asyncio.ensure_future(aligner.review(asked(KEPT)))
        await asyncio.sleep(0)
        await cancelled(second)
        server.gate.set()
        assert same(await first, VERDICTS[CHANGED])
        assert len(server.bodies) == 1


async def test_leaving_while_a_long_review_is_encoded_asks_nobody(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        long = Review((Turn("user", "Is it so? " * 1000),), "", KEPT)
        review = asyncio.ensure_future(aligner.review(long))
        await asyncio.sleep(0)
        await cancelled(review)
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        assert len(server.bodies) == 1


async def test_leaving_before_the_headers_closes_the_connection(folder: Path) -> None:
    server, silent = CompletionServer(trained()), Silent()
    async with served(folder, server) as aligner:
        deaf = await asyncio.start_server(silent.answer, "127.0.0.1", 0)
        port = deaf.sockets[0].getsockname()[1]
        aligner._pool.servers[0]._base = f"http://127.0.0.1:{port}/v1"
        review = asyncio.ensure_future(aligner.review(asked()))
        async with asyncio.timeout(20):
            await silent.arrived.wait()
            await cancelled(review)
            await silent.left.wait()
        assert aligner._pool.servers[0].running == 0
        deaf.close()
        await deaf.wait_closed()


@pytest.mark.parametrize("tokens", [0, 1, 5])
async def test_leaving_stops_the_server_before_the_first_token_and_in_the_middle(
    folder: Path, tokens: int
) -> None:
    server = CompletionServer(trained(), ungated=tokens)
    async with served(folder, server) as aligner:
        server.gate = asyncio.Event()
        review = asyncio.ensure_future(aligner.review(asked()))
        await server.until(lambda: server.running == 1)
        await cancelled(review)
        await server.until(lambda: server.running == 0)
        server.gate.set()
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        assert aligner._pool.servers[0].running == 0


class Short:
    """Answers a completion whole and ends the connection with it. `answered` is set then."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        frame = b'data: {"choices": [{"index": 0, "text": "", "finish_reason": null}]}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"connection: close\r\n\r\n" + frame + b"data: [DONE]\n\n")
        writer.close()
        self.answered.set()


async def test_leaving_at_any_moment_of_an_answer_leaves_nothing_in_the_list_of_requests() -> None:
    short = Short()
    listening = await asyncio.start_server(short.answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = new_client(8)
    server = Server(client, f"http://127.0.0.1:{port}/v1", "urls[0]")

    async def ask() -> None:
        async with server.complete({}) as pieces:
            async for _ in pieces:
                pass

    whole = 0
    for turns in range(24):
        short.answered.clear()
        asking = asyncio.create_task(ask())
        async with asyncio.timeout(20):
            await short.answered.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
                whole += 1
    assert 0 < whole < 24
    assert "Requests: 0 active, 0 queued" in repr(client._transport._pool)
    await client.aclose()
    listening.close()
    await listening.wait_closed()


async def test_leaving_while_waiting_to_try_again_tries_no_more(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [refusal(503, **{"retry-after": "20"})]
        review = asyncio.ensure_future(aligner.review(asked()))
        await until(lambda: aligner._pool.rest() > 0)
        await cancelled(review)
        assert len(server.bodies) == 1


async def test_a_place_is_free_again_however_a_review_ended(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server, queue=1) as aligner:
        server.answers = [refusal(400)]
        with pytest.raises(ReviewError):
            await aligner.review(asked())
        with pytest.raises(ReviewError):
            await aligner.review(asked("For ever."))
        server.gate = asyncio.Event()
        review = asyncio.ensure_future(aligner.review(asked()))
        await server.until(lambda: server.running == 1)
        await cancelled(review)
        server.gate.set()
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_after_closing_nothing_runs_and_nothing_is_asked(folder: Path) -> None:
    before = asyncio.all_tasks()
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.gate = asyncio.Event()
        review = asyncio.ensure_future(aligner.review(asked()))
        await server.until(lambda: server.running == 1)
        await aligner.close()
        with pytest.raises(ReviewError, match="closed"):
            await review
        await server.until(lambda: server.running == 0)
        assert not aligner.ready
        with pytest.raises(ReviewError, match="closed"):
            await aligner.review(asked())
    assert asyncio.all_tasks() <= before
