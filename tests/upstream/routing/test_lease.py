"""One reply's upstream: who is asked, who is asked next, and when nobody is any more."""

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    Overloaded,
    UpstreamError,
    UpstreamRejected,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.health import Health
from stream_aligner_proxy.demo.script import Fault
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.routing.lease import Lease
from stream_aligner_proxy.upstream.routing.member import Member, Terms
from stream_aligner_proxy.upstream.routing.table import Target, Targets
from tests.upstream.routing.parts import REPLY, Told, ask, fleet, text
from tests.upstream.test_exchange import HEAD, STOP, TOKEN, answering

pytestmark = pytest.mark.anyio

OK = Fault()
TRANSIENT = [
    pytest.param(None, id="refused"),
    pytest.param(Fault(status=500), id="500"),
    pytest.param(Fault(status=429), id="429"),
    pytest.param(Fault(status=503), id="503"),
    pytest.param(Fault(stall="headers"), id="no-headers"),
    pytest.param(Fault(stall="first"), id="no-first-chunk"),
    pytest.param(Fault(reset=0), id="reset-before-text"),
    pytest.param(Fault(error_after=0), id="error-frame-before-text"),
    pytest.param(Fault(garbage_after=0), id="garbage-before-text"),
]


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_what_fails_before_its_first_text_is_replaced_by_the_next_in_order(fault) -> None:
    async with fleet(a=fault, b=OK, c=OK) as f:
        lease = f.lease("a", "bc")
        assert await text(lease) == REPLY
        assert lease.name == "b"
        assert f.asked()["c"] == 0
        assert f.told.failovers == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
async def test_a_request_that_is_refused_for_its_own_sake_is_not_sent_elsewhere(status) -> None:
    async with fleet(a=Fault(status=status), b=OK) as f:
        with pytest.raises(UpstreamRejected) as raised:
            await text(f.lease("a", "b"))
        assert raised.value.status == status
        assert f.asked() == {"a": 1, "b": 0}
        assert f.members["a"].health.state == "ok"


@pytest.mark.parametrize(
    "fault", [Fault(reset=4), Fault(error_after=4), Fault(garbage_after=4), Fault(finish=False)]
)
async def test_after_the_first_text_nothing_is_tried_again(fault) -> None:
    async with fleet(a=fault, b=OK) as f:
        lease = f.lease("a", "b")
        with pytest.raises(UpstreamError):
            await text(lease)
        assert f.asked() == {"a": 1, "b": 0}
        assert f.told == Told()


async def test_the_branch_after_a_failure_goes_elsewhere_with_what_was_committed() -> None:
    async with fleet(a=Fault(reset=4), b=OK) as f:
        lease = f.lease("a", "b")
        with pytest.raises(UpstreamError):
            await text(lease)
        assert await text(lease, prefix="One is here.") == " Two is here. Three is here."
        assert lease.name == "b"
        assert f.asked() == {"a": 1, "b": 1}


async def test_all_branches_of_a_reply_stay_with_who_wrote_first() -> None:
    async with fleet(a=None, b=OK, c=OK) as f:
        lease = f.lease("a", "bc")
        await text(lease)
        for _ in range(3):
            await text(lease, prefix="One is here.")
        assert f.asked() == {"b": 4, "c": 0}


async def test_a_continuation_goes_only_to_who_can_continue() -> None:
    async with fleet(a=None, b=OK, c=OK, continuation={"b": "rewrite-only"}) as f:
        lease = f.lease("a", "bc")
        assert lease.continuation(ask()).possible
        assert await text(lease, prefix="One is here.") == " Two is here. Three is here."
        assert lease.name == "c"


async def test_where_nobody_can_continue_it_is_said_so() -> None:
    async with fleet(a=OK, continuation={"a": "rewrite-only"}) as f:
        with pytest.raises(ContinuationFailed):
            await text(f.lease("a"), prefix="One is here.")


async def test_a_refused_connection_is_tried_again_as_often_as_configured() -> None:
    async with fleet(a=None, terms={"a": Terms(retries=3)}) as f:
        with pytest.raises(UpstreamUnreachable):
            await text(f.lease("a"))
        assert f.told.retries == [("a", "upstream_unreachable")] * 3


async def test_without_retries_the_next_is_asked_at_once() -> None:
    async with fleet(a=None, b=OK, terms={"a": Terms(retries=0)}) as f:
        assert await text(f.lease("a", "b")) == REPLY
        assert f.told == Told([], 1)


async def test_a_short_retry_after_is_waited_for_once() -> None:
    async with fleet(a=Fault(status=429, headers={"retry-after-ms": "20"})) as f:
        with pytest.raises(UpstreamRejected) as raised:
            await text(f.lease("a"))
        assert raised.value.headers["retry-after-ms"] == "20"
        assert f.asked() == {"a": 2}


@pytest.mark.parametrize("headers", [{}, {"retry-after": "7"}, {"retry-after": "nan"}])
async def test_a_long_retry_after_is_the_clients_affair(headers) -> None:
    async with fleet(a=Fault(status=503, headers=headers)) as f:
        with pytest.raises(UpstreamRejected):
            await text(f.lease("a"))
        assert f.asked() == {"a": 1}


async def test_no_wait_goes_beyond_the_time_for_the_whole_reply() -> None:
    patient = Fault(status=429, headers={"retry-after": "2"})
    async with fleet(a=patient, terms={"a": Terms(total=1)}) as f:
        with pytest.raises(UpstreamRejected):
            await text(f.lease("a"))
        assert f.asked() == {"a": 1}


async def test_a_kept_connection_that_the_server_has_just_closed_goes_unnoticed() -> None:
    async with _closing_kept_connections() as (member, requests):
        told = Told()
        targets = Targets((Target(member, "m"),))
        for _ in range(2):
            assert await text(Lease(targets, ask(), told)) == "Hi."
        assert requests() == 3
        assert member.last_error is None
        assert member.health.state == "ok"


@asynccontextmanager
async def _closing_kept_connections():
    """A server that keeps its first connection, and closes it when it is used again."""
    count = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        kept = False
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
                count += 1
                if kept:
                    return
                kept = True
                body = TOKEN % b"Hi." + STOP
                writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    member = Member(HttpUpstream("main", f"http://127.0.0.1:{port}/v1"))
    try:
        yield member, lambda: count
    finally:
        await member.aclose()
        server.close()
        await server.wait_closed()


async def test_over_its_limit_an_upstream_is_passed_over_while_another_is_free() -> None:
    one = {"a": Terms(max_concurrent=1, patience=5)}
    async with fleet(a=OK, b=OK, terms=one) as f:
        async with f.lease("a", "b").open(ask()):
            lease = f.lease("a", "b")
            assert await text(lease) == REPLY
            assert lease.name == "b"
        lease = f.lease("a", "b")
        await text(lease)
        assert lease.name == "a"


async def test_with_no_other_a_full_upstream_is_waited_for() -> None:
    async with fleet(a=OK, terms={"a": Terms(max_concurrent=1, patience=5)}) as f:
        async with f.lease("a").open(ask()):
            waiting = asyncio.create_task(text(f.lease("a")))
            await asyncio.sleep(0)
            assert f.asked() == {"a": 1}
        assert await waiting == REPLY


async def test_who_waits_too_long_for_a_full_upstream_is_told_when_to_come_again() -> None:
    async with fleet(a=OK, terms={"a": Terms(max_concurrent=1, patience=0.05)}) as f:
        async with f.lease("a").open(ask()):
            with pytest.raises(Overloaded) as raised:
                await text(f.lease("a"))
        assert (raised.value.status, raised.value.headers) == (503, {"retry-after": "1"})


async def test_two_branches_of_one_reply_take_one_place() -> None:
    async with fleet(a=OK, terms={"a": Terms(max_concurrent=1, patience=0.05)}) as f:
        lease = f.lease("a")
        async with lease.open(ask()):
            await text(lease, prefix="One is here.")
            with pytest.raises(Overloaded):
                await text(f.lease("a"))
        assert await text(f.lease("a")) == REPLY
        assert f.members["a"].open == 0


async def test_a_cancelled_reply_leaves_its_place() -> None:
    stalled = Fault(stall="headers")
    async with fleet(a=stalled, terms={"a": Terms(max_concurrent=1, patience=5)}) as f:
        server = f.servers["a"]
        assert server is not None
        task = asyncio.create_task(text(f.lease("a")))
        await server.until(lambda s: s.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (f.members["a"].open, f.members["a"].full) == (0, False)


async def test_each_target_is_asked_for_its_own_model() -> None:
    async with fleet(a=None, b=OK) as f:
        targets = Targets((Target(f.members["a"], "x"), Target(f.members["b"], "y")))
        lease = Lease(targets, ask(), f.told)
        await text(lease)
        server = f.servers["b"]
        assert server is not None
        assert server.requests[0].body["model"] == "y"


async def test_the_session_header_names_the_conversation_and_tells_nothing_of_it() -> None:
    async with fleet(a=OK, terms={"a": Terms(session_header="x-session")}) as f:
        for question in ("secret question", "secret question", "other"):
            await text(f.lease("a", request=ask(question)), request=ask(question))
        server = f.servers["a"]
        assert server is not None
        first, again, other = (request.headers["x-session"] for request in server.requests)
    assert first == again != other
    assert "secret" not in first


async def relayed(lease: Lease, *, stream: bool = True) -> bytes:
    body = {**ask().body, "stream": stream}
    async with lease.relay(body, {}, stream=stream) as answer:
        if answer.body is not None:
            return answer.body
        return b"".join([frames async for frames in answer.frames])


@pytest.mark.parametrize("fault", TRANSIENT[:6])
async def test_a_relay_falls_back_before_its_first_byte_too(fault) -> None:
    async with fleet(a=fault, b=OK) as f:
        assert (await relayed(f.lease("a", "b"))).endswith(b"data: [DONE]\n\n")
        assert f.asked()["b"] == 1


async def test_a_relay_that_has_begun_is_not_tried_again() -> None:
    async with fleet(a=Fault(reset=4), b=OK) as f:
        with pytest.raises(UpstreamError):
            await relayed(f.lease("a", "b"))
        assert f.asked()["b"] == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_relayed_answer_names_the_model_that_was_asked_for(stream: bool) -> None:
    async with fleet(a=OK) as f:
        answer = await relayed(f.lease("a", model="theirs"), stream=stream)
        server = f.servers["a"]
        assert server is not None
        assert server.requests[0].body["model"] == "theirs"
    bodies = answer.split(b"\n\n")[:-2] if stream else [answer]
    assert {orjson.loads(body.removeprefix(b"data: "))["model"] for body in bodies} == {"m"}


async def test_failures_in_a_row_put_an_upstream_last_until_it_answers_and_serves_again() -> None:
    async with fleet(a=Fault(status=500), b=OK) as f:
        member = f.members["a"]
        for _ in range(3):
            await text(f.lease("ab", request=_conversation_of(f, "a")))
        assert member.health.state == "open"
        assert f.asked()["a"] == 3
        await text(f.lease("ab", request=_conversation_of(f, "a")))
        assert f.asked()["a"] == 3  # skipped
        async with asyncio.timeout(5):
            while member.health.state != "half-open":  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        await text(f.lease("ab", request=_conversation_of(f, "a")))
        assert f.asked()["a"] == 4
        assert member.health.pause == 0.02  # it failed again: it is pinged less often


def _conversation_of(f, name: str):
    """A request whose conversation belongs to `name` while all are well."""
    from stream_aligner_proxy.upstream.routing.choosing import conversation_key, draw

    for number in range(1000):
        request = ask(f"q{number}")
        key = conversation_key(request)
        if max("ab", key=lambda one: draw(key, f"{one}/m", 1.0)) == name:
            return request
    raise AssertionError("no conversation found")


async def test_without_a_breaker_an_ill_upstream_is_asked_where_there_is_no_other() -> None:
    async with answering(_fails_then_serves()) as upstream:
        member = Member(upstream, health=Health(enforced=False))
        told = Told()
        targets = Targets((Target(member, "m"),))
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await text(Lease(targets, ask(), told))
        assert member.health.state == "open"
        assert await text(Lease(targets, ask(), told)) == "Hi."
        assert member.health.state == "ok"
        await member.aclose()


def _fails_then_serves():
    asked = 0

    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked <= 3:
            writer.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        else:
            writer.write(HEAD + b"connection: close\r\n\r\n" + TOKEN % b"Hi." + STOP)
        await writer.drain()

    return handle
