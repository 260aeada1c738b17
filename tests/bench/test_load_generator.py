"""The gateway bench's own parts: what they check must be able to fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.generator import Job, Reply, fault_of, run
from bench.mock import Server, events, made_up

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def mock(**replies: list[str]) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    connected: set[Server] = set()
    nobody = asyncio.Event()

    class Counted(Server):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connected.add(self)
            nobody.clear()
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            connected.remove(self)
            if not connected:
                nobody.set()

    nobody.set()
    server = await loop.create_server(lambda: Counted(replies, 0), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait_for(nobody.wait(), 5)


@pytest.mark.parametrize("rate", [0, 2000])
async def test_replies_of_the_mock_are_right_to_the_byte(rate: float) -> None:
    async with mock() as port:
        job = Job(port, tokens=300, rate=rate, streams=3, requests=2, exact=True)
        outcome = await run(job)
    assert outcome.failures == []
    assert outcome.chunks == 1800
    assert outcome.tokens == 0, "exact replies are not taken apart"
    assert len(outcome.first_text) == 6


async def test_a_recorded_question_gets_its_recorded_reply() -> None:
    async with mock(hello=["Hi", " there", "."]) as port:
        outcome = await run(Job(port, questions=["hello"], streams=2))
    assert outcome.failures == []
    assert outcome.tokens == 6


async def test_nobody_listening_is_a_failure_of_each_request() -> None:
    async with mock() as port:
        pass
    outcome = await run(Job(port, tokens=1, requests=2))
    assert len(outcome.failures) == 2


def reply(body: bytes, status: bytes = b"200 OK") -> Reply:
    framed = b"HTTP/1.1 " + status + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return Reply("", 1, 0.0, pieces=[framed], times=[0.0])


GOOD = b"".join(events(made_up(20, 1), usage="last"))
FIRST = made_up(20, 1)[0].encode()


@pytest.mark.parametrize(
    ("body", "exact", "fault"),
    [
        (GOOD, True, ""),
        (GOOD, False, ""),
        (GOOD.replace(b'"created":1,', b'"created":2,'), True, "other bytes"),
        (GOOD.replace(b'"created":1,', b'"created":2,'), False, ""),
        (GOOD.replace(FIRST, b"Other", 1), False, "other text"),
        (GOOD.replace(b'"stop"', b"null"), False, "no finish reason"),
        (GOOD.removesuffix(b"data: [DONE]\n\n"), False, "no end marker"),
        (b'data: {"error":{"message":"no"}}\n\n', False, "error frame"),
        (b"data: {cut\n\n", False, "not an event stream"),
    ],
)
def test_what_is_wrong_with_a_reply_is_found(body: bytes, exact: bool, fault: str) -> None:
    found = fault_of(Job(1, tokens=20, exact=exact), reply(body))
    assert found.startswith(fault) if fault else found == ""


def test_a_refusal_is_a_failure() -> None:
    assert fault_of(Job(1, tokens=20), reply(b"no", b"503 Busy")).startswith("status 503")


def test_the_stall_is_the_longest_gap_between_texts() -> None:
    text, other = b'{"content":"a"}', b": ping"
    pieces, times = [text, other, text, text, other], [1.0, 2.0, 4.0, 4.5, 9.0]
    assert Reply("", 1, 0.0, pieces=pieces, times=times).stall == 3.0
