"""Several servers: who is asked, who dies, who comes back."""

import asyncio
import sys
from pathlib import Path

import pytest

from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.aligners.remote_pool import MARGIN, Pool, key_of
from stream_aligner_proxy.aligners.remote_server import Server, new_client
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Turn
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import trained
from tests.aligners.remotes import (
    answered,
    asked,
    served,
    talk,
    through_lines,
)
from tests.aligners.test_transformers_engine import CHANGED, VERDICTS, same
from tests.servers import refused_address, serve
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]


async def test_the_reviews_of_a_talk_meet_the_same_server(folder: Path) -> None:
    servers = [CompletionServer(trained()) for _ in range(3)]
    async with served(folder, *servers) as aligner:
        for _ in range(3):
            for number in range(12):
                await answered(aligner, talk(number))
        prompts = [{tuple(body["prompt"]) for body in server.bodies} for server in servers]
        assert sum(map(len, prompts)) == 12


async def nobody(server: Server) -> None:
    raise ReviewError("no server is asked here")


async def test_talks_are_spread_and_only_those_of_a_lost_server_move() -> None:
    async with new_client(1) as client:
        servers = [Server(client, f"http://host{n}/v1", f"urls[{n}]") for n in range(4)]
        pool = Pool(servers, nobody)
        for server in servers:
            server.up = True
        keys = [key_of(talk(number)) for number in range(400)]
        before = [pool.choose(key) for key in keys]
        for server in servers:
            assert 60 <= before.count(server) <= 140
        servers[2].up = False
        after = [pool.choose(key) for key in keys]
        for old, new in zip(before, after, strict=True):
            assert (new is old) == (old is not servers[2])
        assert len(set(after)) == 3


def test_a_talk_is_known_by_its_beginning() -> None:
    asks = Turn("user", "Who?")
    system = Turn("system", "Be kind.")
    first = key_of(Review((system, asks), "", "A."))
    longer = (system, asks, Turn("assistant", "He."), Turn("user", "Why?"))
    assert key_of(Review(longer, "He is.", "B.")) == first
    assert key_of(Review((system, Turn("user", "Where?")), "", "A.")) != first


async def test_a_server_that_is_too_busy_passes_reviews_on(folder: Path) -> None:
    servers = [CompletionServer(trained()), CompletionServer(trained())]
    async with served(folder, *servers) as aligner:
        for server in servers:
            server.gate = asyncio.Event()
        count = MARGIN + 4
        reviews = [asyncio.ensure_future(aligner.review(talk(0))) for _ in range(count)]
        await until(lambda: sum(server.running for server in servers) == count)
        # One more than the margin, and then in turn.
        assert sorted(server.running for server in servers) == [2, MARGIN + 2]
        for server in servers:
            assert server.gate is not None
            server.gate.set()
        await asyncio.gather(*reviews, return_exceptions=True)


async def test_a_server_that_dies_hands_its_talks_to_the_others_and_gets_them_back(
    folder: Path,
) -> None:
    servers = [CompletionServer(trained()), CompletionServer(trained())]
    async with through_lines(folder, *servers) as (aligner, lines):
        await aligner.review(asked())
        mine = 0 if servers[0].bodies else 1
        await lines[mine].down()
        for _ in range(5):
            assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        await until(lambda: not aligner._pool.servers[mine].up)
        assert aligner.ready
        await lines[mine].up()
        await until(lambda: aligner._pool.servers[mine].up)
        count = len(servers[mine].bodies)
        await aligner.review(asked())
        assert len(servers[mine].bodies) == count + 1


class Process:
    """The test server as a program."""

    async def __aenter__(self) -> "Process":
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.aligners.completion_server",
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        self.url = f"{line.decode().strip()}/v1"
        return self

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


async def test_when_a_server_process_is_killed_reviews_go_on_at_the_other(folder: Path) -> None:
    async with Process() as one, Process() as other:
        aligner = RemoteAligner(folder, urls=[one.url, other.url])
        await aligner.start()
        try:
            talks = [
                review
                for server in aligner._pool.servers
                for review in [r for r in map(talk, range(200)) if chosen(aligner, r) is server][:4]
            ]
            assert len(talks) == 8
            running = [asyncio.ensure_future(answered(aligner, review)) for review in talks * 10]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            await one.kill()
            results = await asyncio.gather(*running, return_exceptions=True)
            # Cut in the middle of an answer is the only way to fail.
            for result in results:
                if isinstance(result, BaseException):
                    assert isinstance(result, ReviewError)
                    assert "middle" in str(result)
            for review in talks:
                await answered(aligner, review)
            assert [server.up for server in aligner._pool.servers] == [False, True]
        finally:
            await aligner.close()


def chosen(aligner: RemoteAligner, review: Review) -> Server | None:
    return aligner._pool.choose(key_of(review))


async def test_where_no_server_is_up_a_review_tries_all_the_same(folder: Path) -> None:
    async with through_lines(folder, CompletionServer(trained())) as (aligner, [_line]):
        aligner._pool.servers[0].up = False
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_an_address_where_nobody_listens_costs_the_others_nothing(folder: Path) -> None:
    server = CompletionServer(trained())
    async with serve(server.app) as address:
        aligner = RemoteAligner(folder, urls=[f"{refused_address()}/v1", f"{address}/v1"])
        await aligner.start()
        try:
            server.bodies.clear()
            for number in range(4):
                await answered(aligner, talk(number))
            assert len(server.bodies) == 4
        finally:
            await aligner.close()
