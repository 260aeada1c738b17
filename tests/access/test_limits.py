"""Limits: the arithmetic, and that memory and Redis do the same."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stream_aligner_proxy.access.limits import Limiter, Limits, duration
from stream_aligner_proxy.access.memory import MemoryLimiter
from stream_aligner_proxy.access.redis_limits import RedisLimiter, RedisOptions
from stream_aligner_proxy.core.errors import Overloaded, RateLimited
from tests.access.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Limiter]:
    if request.param == "memory":
        yield MemoryLimiter()
        return
    with redis_server(tmp_path) as server:
        made = RedisLimiter(RedisOptions(server.url, timeout=5.0))
        await made.start()
        yield made
        await made.close()


async def refused(limiter: Limiter, who: str, limits: Limits) -> RateLimited:
    with pytest.raises(RateLimited) as raised:
        await limiter.take(who, limits)
    return raised.value


async def test_as_many_requests_as_the_limit_says_and_no_more(limiter: Limiter) -> None:
    limits = Limits(requests_per_minute=3)  # one comes back after 20 seconds
    places = [await limiter.take("a", limits) for _ in range(3)]
    assert [place.decision.headers()["x-ratelimit-remaining-requests"] for place in places] == [
        *("2", "1", "0")
    ]
    assert places[0].decision.headers()["x-ratelimit-limit-requests"] == "3"
    for place in places:
        place.release()  # what was asked stays asked
    error = await refused(limiter, "a", limits)
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert 1 <= int(error.headers["retry-after"]) <= 20
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    await limiter.take("b", limits)


async def test_tokens_are_paid_afterwards_and_refused_before(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=100)
    first = await limiter.take("a", limits)
    assert first.decision.headers()["x-ratelimit-remaining-tokens"] == "100"
    limiter.spend("a", 40)
    await left(limiter, "a", limits, "60")
    limiter.spend("a", 200)
    error = await until_refused(limiter, "a", limits)
    assert (error.type, error.headers["x-ratelimit-remaining-tokens"]) == ("tokens", "0")
    assert int(error.headers["retry-after"]) > 60  # the debt is paid first


async def left(limiter: Limiter, who: str, limits: Limits, tokens: str) -> None:
    """Wait until so many tokens, or one more, are left: time goes on."""
    async with asyncio.timeout(10):
        while True:
            place = await limiter.take(who, limits)
            told = int(place.decision.headers()["x-ratelimit-remaining-tokens"])
            if int(tokens) <= told <= int(tokens) + 5:
                return


async def until_refused(limiter: Limiter, who: str, limits: Limits) -> RateLimited:
    async with asyncio.timeout(10):
        while True:
            try:
                await limiter.take(who, limits)
            except RateLimited as error:
                return error


async def test_a_place_is_given_back_once(limiter: Limiter) -> None:
    limits = Limits(max_open=2)
    first = await limiter.take("a", limits)
    await limiter.take("a", limits)
    error = await refused(limiter, "a", limits)
    assert "2 requests at once" in error.message
    first.release()
    first.release()
    await limiter.take("a", limits)
    await refused(limiter, "a", limits)


async def test_a_client_that_asks_as_soon_as_it_is_answered_finds_its_place_free(
    limiter: Limiter,
) -> None:
    limits = Limits(max_open=1)
    for _ in range(200):
        place = await limiter.take("a", limits)
        await refused(limiter, "a", limits)
        place.release()
    await limiter.take("a", limits)
    await refused(limiter, "a", limits)


async def test_who_is_refused_has_used_up_nothing(limiter: Limiter) -> None:
    limits = Limits(requests_per_minute=4, max_open=1)
    place = await limiter.take("a", limits)
    for _ in range(5):
        await refused(limiter, "a", limits)
    place.release()
    place = await limiter.take("a", limits)
    assert place.decision.requests is not None
    assert place.decision.requests.remaining == 2


async def test_of_many_at_once_exactly_as_many_as_may_come_in(limiter: Limiter) -> None:
    limits = Limits(requests_per_minute=5)
    results = await asyncio.gather(
        *(limiter.take("a", limits) for _ in range(25)), return_exceptions=True
    )
    assert sum(not isinstance(result, RateLimited) for result in results) == 5


async def test_time_brings_back_what_was_used() -> None:
    now = 1000.0
    limiter, limits = MemoryLimiter(lambda: now), Limits(requests_per_minute=60)
    for _ in range(60):
        await limiter.take("a", limits)
    error = await refused(limiter, "a", limits)
    now += float(error.headers["retry-after-ms"]) / 1000
    await limiter.take("a", limits)
    await refused(limiter, "a", limits)
    now += 3600
    place = await limiter.take("a", limits)
    assert place.decision.headers()["x-ratelimit-remaining-requests"] == "59"
    assert place.decision.headers()["x-ratelimit-reset-requests"] == "1s"


async def test_memory_forgets_who_holds_nothing() -> None:
    now = 0.0
    limiter = MemoryLimiter(lambda: now)
    held = await limiter.take("held", Limits(max_open=1))
    for number in range(20_000):
        now += 1.0
        (await limiter.take(str(number), Limits(requests_per_minute=60))).release()
    assert len(limiter._accounts) < 5000
    await refused(limiter, "held", Limits(max_open=1))
    held.release()
    await limiter.take("held", Limits(max_open=1))


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.0121, "13ms"), (1, "1s"), (1.23, "1.3s"), (59.99, "1m0s"), (360, "6m0s")],
)
async def test_durations_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize("on_failure", ["open", "closed"])
async def test_a_redis_that_dies_holds_nobody_up_and_is_used_again_when_it_is_back(
    tmp_path: Path, on_failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[None] = []
    limits = Limits(requests_per_minute=2)
    with redis_server(tmp_path, password="open-sesame") as server:
        options = RedisOptions(server.url, timeout=5.0, on_failure=on_failure)  # type: ignore[arg-type]
        limiter = RedisLimiter(options, lambda: failures.append(None))
        await limiter.start()
        await limiter.take("a", limits)
        assert limiter.state == "ok"
        server.stop()
        async with asyncio.timeout(5):
            for _ in range(2):
                if on_failure == "open":  # counted by this process alone
                    await limiter.take("a", limits)
                else:
                    with pytest.raises(Overloaded):
                        await limiter.take("a", limits)
            if on_failure == "open":
                await refused(limiter, "a", limits)
        assert failures
        assert limiter.state == "unreachable"
        server.start()
        await until(lambda: limiter.state == "ok")
        await limiter.take("c", limits)
        await limiter.close()
    assert "open-sesame" not in caplog.text
    assert "access.redis" in caplog.text


async def test_a_redis_that_is_silent_is_left_alone_after_the_timeout() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        limiter = RedisLimiter(RedisOptions(f"redis://127.0.0.1:{port}", timeout=0.05))
        await limiter.start()
        async with asyncio.timeout(5):
            await limiter.take("a", Limits(max_open=1))
            for _ in range(100):  # these do not even try
                with pytest.raises(RateLimited):
                    await limiter.take("a", Limits(max_open=1))
        await limiter.close()


async def test_leases_are_renewed_while_they_are_held_and_end_with_their_process(
    tmp_path: Path,
) -> None:
    limits = Limits(max_open=1)
    with redis_server(tmp_path) as server:
        options = RedisOptions(server.url, lease=0.4, timeout=5.0)
        dead, living = RedisLimiter(options), RedisLimiter(options)
        await living.start()
        await living.take("a", limits)
        await dead.take("b", limits)  # never started: it renews nothing
        await refused(living, "b", limits)
        async with asyncio.timeout(10):
            while True:
                try:
                    await living.take("b", limits)
                    break
                except RateLimited:
                    await asyncio.sleep(0.02)
        # By now the other's lease would have ended, too.
        await refused(living, "a", limits)
        await living.close()
        await dead.close()


async def test_a_caller_that_is_cancelled_leaves_no_place_behind(tmp_path: Path) -> None:
    limits = Limits(max_open=1)
    with redis_server(tmp_path) as server:
        limiter = RedisLimiter(RedisOptions(server.url, timeout=5.0))
        await limiter.start()
        for _ in range(20):
            task = asyncio.create_task(limiter.take("a", limits))
            await asyncio.sleep(0.0005)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            if not isinstance(result, BaseException):
                result.release()
        async with asyncio.timeout(10):
            while True:
                try:
                    await limiter.take("a", limits)
                    break
                except RateLimited:
                    await asyncio.sleep(0.01)
        await limiter.close()


def test_a_server_is_here(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        assert isinstance(server, RedisServer)
