"""The remote aligner when things go wrong: refusals, cut lines, slow servers, leaving, dying."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from stream_aligner_proxy.aligners import remote, remote_pool
from stream_aligner_proxy.aligners.remote import ATTEMPTS, RemoteAligner
from stream_aligner_proxy.aligners.remote_pool import MARGIN, Pool, key_of
from stream_aligner_proxy.aligners.remote_server import Server, new_client
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.aligners.completion_server import CompletionServer, FaultyLine, faulty_line
from tests.aligners.models import trained
from tests.aligners.test_remote import asked, folder, served
from tests.aligners.test_transformers_engine import CHANGED, KEPT, VERDICTS, same
from tests.servers import refused_address, serve

__all__ = ["folder"]  # the fixture

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_pool, "UP_SECONDS", 0.1)
    monkeypatch.setattr(remote_pool, "DOWN_SECONDS", 0.02)
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)


@pytest.fixture
def no_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signs of life in between: what a test counts are its own requests."""
    monkeypatch.setattr(remote_pool, "UP_SECONDS", 60.0)
    monkeypatch.setattr(remote_pool, "DOWN_SECONDS", 60.0)


async def until(holds: Callable[[], bool]) -> None:
    """Poll, with a bound, for what has no event."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  (what an aligner knows has no event to wait for)
            await asyncio.sleep(0.002)


def refusal(status: int, **headers: str) -> Response:
    return JSONResponse({"error": {"message": "not now", "code": status}}, status, headers)


def framed(status: int) -> Response:
    """A refusal inside a 200, as some servers send it for a stream."""
    text = f'data: {{"error": {{"message": "not now", "code": {status}}}}}\n\ndata: [DONE]\n\n'
    return Response(text, media_type="text/event-stream")


@asynccontextmanager
async def through_lines(
    folder: Path, *servers: CompletionServer, **options: Any
) -> AsyncIterator[tuple[RemoteAligner, list[FaultyLine]]]:
    """An aligner whose lines to the servers can be cut."""
    async with AsyncExitStack() as stack:
        lines = []
        for server in servers:
            address = await stack.enter_async_context(serve(server.app))
            lines.append(await stack.enter_async_context(faulty_line(address)))
        aligner = RemoteAligner(folder, urls=[line.url for line in lines], **options)
        stack.push_async_callback(aligner.close)
        await aligner.start()
        for server in servers:
            server.bodies.clear()
        yield aligner, lines


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [refusal, framed])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_server_that_is_not_available_is_asked_again(
    folder: Path, status: int, answer: Callable[[int], Response]
) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [answer(status), answer(status)]
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        assert len(server.bodies) == 3


async def test_the_other_server_is_asked_first(folder: Path) -> None:
    servers = [CompletionServer(trained()), CompletionServer(trained())]
    async with served(folder, *servers) as aligner:
        await aligner.review(asked())
        mine, other = sorted(servers, key=lambda server: -len(server.bodies))
        mine.answers = [refusal(503)]
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        assert (len(mine.bodies), len(other.bodies)) == (2, 1)


async def test_a_server_that_asked_for_rest_is_left_alone_and_then_asked_again(
    folder: Path,
) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [refusal(429, **{"retry-after": "0.2"})]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        assert loop.time() - begun >= 0.2


async def test_a_rest_longer_than_the_deadline_fails_at_once(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server, timeout=5.0) as aligner:
        server.answers = [refusal(429, **{"retry-after": "60"})]
        for _ in range(2):
            async with asyncio.timeout(4):
                with pytest.raises(ReviewError, match="not available"):
                    await aligner.review(asked())
        assert len(server.bodies) == 1


async def test_it_gives_up_after_some_attempts(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [refusal(503) for _ in range(20)]
        with pytest.raises(ReviewError, match="503"):
            await aligner.review(asked())
        assert len(server.bodies) == ATTEMPTS


@pytest.mark.parametrize("answer", [refusal, framed])
@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_any_other_refusal_is_final_and_its_words_stay_in_the_log(
    folder: Path,
    status: int,
    answer: Callable[[int], Response],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [answer(status)]
        with pytest.raises(ReviewError, match=rf"refused the review \({status}\)") as caught:
            await aligner.review(asked())
        assert "not now" not in caught.value.message
        assert "not now" in caplog.text
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "content",
    [b"data: {}\n\n", b"data: what\n\n", b'data: {"choices": [3]}\n\n', b"data: [DONE]\n\n", b"\n"],
)
async def test_what_is_no_completion_is_an_error(folder: Path, content: bytes) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        server.answers = [Response(content, media_type="text/event-stream")]
        with pytest.raises(ReviewError, match=r"no completion|broke off"):
            await aligner.review(asked())
        assert len(server.bodies) == 1


async def test_a_key_that_a_server_gives_back_is_not_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = CompletionServer(trained(), key="sk-right")
    async with served(folder, server, api_key="sk-right") as aligner:
        server.key = "sk-changed"
        with pytest.raises(ReviewError, match="refused the review"):
            await aligner.review(asked())
        assert "no such key: Bearer …" in caplog.text
        assert "sk-right" not in caplog.text


async def test_an_answer_in_one_piece_will_do(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        ids = [aligner._encoder.keep, *aligner._encoder.ends]
        choice = {"text": "", "token_ids": ids, "finish_reason": "stop"}
        server.answers = [JSONResponse({"choices": [choice]})]
        assert (await aligner.review(asked())).kept


# --- cut lines -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_watching")
async def test_a_line_cut_before_the_first_byte_is_tried_again(folder: Path) -> None:
    async with through_lines(folder, CompletionServer(trained())) as (aligner, [line]):
        line.plan = [0, 0]
        await drop_idle(aligner, line)
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def drop_idle(aligner: RemoteAligner, line: FaultyLine) -> None:
    """Have the next request open a new connection."""
    for writer in list(line._open):
        writer.close()
    await until(lambda: not line._open)


@pytest.mark.usefixtures("no_watching")
async def test_a_line_cut_in_the_middle_fails_the_review_and_is_not_tried_again(
    folder: Path,
) -> None:
    server = CompletionServer(trained())
    async with through_lines(folder, server) as (aligner, [line]):
        line.plan = [600]  # some headers and two or three tokens
        await drop_idle(aligner, line)
        with pytest.raises(ReviewError, match="broke off in the middle"):
            await aligner.review(asked())
        assert len(server.bodies) == 1
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_a_server_that_goes_and_comes_back_is_used_again_by_itself(folder: Path) -> None:
    async with through_lines(folder, CompletionServer(trained())) as (aligner, [line]):
        await line.down()
        with pytest.raises(ReviewError, match="cannot be reached"):
            await aligner.review(asked())
        await until(lambda: not aligner.ready)
        await line.up()
        await until(lambda: aligner.ready)
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_a_server_that_is_down_at_the_start_is_used_when_it_is_up(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = CompletionServer(trained())
    async with serve(server.app) as address:
        line = FaultyLine(address)
        await line.up()
        await line.down()
        aligner = RemoteAligner(folder, urls=[line.url])
        try:
            await aligner.start()
            assert not aligner.ready
            assert "aligner.urls[0]: does not answer" in caplog.text
            with pytest.raises(ReviewError, match="has been up yet"):
                await aligner.review(asked())
            await line.up()
            await until(lambda: aligner.ready)
            assert same(await aligner.review(asked()), VERDICTS[CHANGED])
        finally:
            await aligner.close()
            await line.down()


async def test_a_server_that_comes_late_and_can_never_work_is_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = CompletionServer(trained(), key="right")
    async with serve(server.app) as address:
        line = FaultyLine(address)
        await line.up()
        await line.down()
        aligner = RemoteAligner(folder, urls=[line.url], api_key="wrong-key")
        try:
            await aligner.start()
            await line.up()
            await until(lambda: server.pings > 3)
            assert not aligner.ready
            assert caplog.text.count("does not accept it; it is not used") == 1
            assert "wrong-key" not in caplog.text
        finally:
            await aligner.close()
            await line.down()


async def test_a_server_that_has_changed_while_it_was_away_is_got_to_know_anew(
    folder: Path,
) -> None:
    server = CompletionServer(trained())
    async with through_lines(folder, server) as (aligner, [line]):
        await line.down()
        await until(lambda: not aligner.ready)
        server.window, server.chances = 300, 0
        await line.up()
        await until(lambda: aligner.ready)
        assert aligner._window == 300
        assert aligner.strengths == (0.5, 0.5)


# --- slowness and leaving --------------------------------------------------------------------


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
            self.left.set()
            writer.close()


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


# --- several servers -------------------------------------------------------------------------


def talk(number: int) -> Review:
    return Review((Turn("user", f"Go on, {number}."),), "", KEPT)


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


async def answered(aligner: RemoteAligner, review: Review) -> None:
    """The model may not know what to say to this talk, but its server must answer."""
    try:
        await aligner.review(review)
    except ReviewError as error:
        if "server" in str(error):
            raise


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
