"""The remote aligner at servers that refuse, and over lines that are cut."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, Response

from stream_aligner_proxy.aligners.remote import ATTEMPTS, RemoteAligner
from stream_aligner_proxy.core.errors import ReviewError
from tests.aligners.completion_server import CompletionServer, FaultyLine
from tests.aligners.models import trained
from tests.aligners.remotes import (
    asked,
    framed,
    refusal,
    served,
    through_lines,
)
from tests.aligners.test_transformers_engine import CHANGED, KEPT, VERDICTS, same
from tests.servers import serve
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]


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


@pytest.mark.usefixtures("no_watching")
async def test_reviews_one_after_another_share_a_connection(folder: Path) -> None:
    async with through_lines(folder, CompletionServer(trained())) as (aligner, [line]):
        await aligner.review(asked())
        before = line.connections
        for sentence in (CHANGED, KEPT, CHANGED):
            await aligner.review(asked(sentence))
        assert line.connections == before
