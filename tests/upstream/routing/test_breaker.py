"""Upstreams that are down are not asked, and come back."""

import asyncio

import pytest

from stream_aligner_proxy.core.errors import UpstreamDown, UpstreamError
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.upstream.routing.lease import Lease
from stream_aligner_proxy.upstream.routing.member import Terms
from stream_aligner_proxy.upstream.routing.table import Targets
from tests.upstream.routing.parts import REPLY, Fleet, Told, ask, fleet, text
from tests.waiting import until

pytestmark = pytest.mark.anyio

OK = Fault()
ILL = Fault(status=500)


async def opened(f: Fleet, name: str = "a") -> None:
    """Fail until its breaker opens, and let nobody ping it."""
    member = f.members[name]
    member.health.pause = member.health._shortest = 1000
    for _ in range(3):
        with pytest.raises(UpstreamError):
            await text(f.lease(name))
    assert member.health.state == "open"


def mended(f: Fleet, name: str = "a", fault: Fault = OK) -> None:
    server = f.servers[name]
    assert server is not None
    server.script = Script((Rule(REPLY, fault=fault),))


async def test_a_lone_upstream_that_is_open_is_not_asked_and_it_is_said_when_to_come_again() -> (
    None
):
    async with fleet(a=ILL) as f:
        await opened(f)
        with pytest.raises(UpstreamDown, match="'a'") as raised:
            await text(f.lease("a"))
        error = raised.value
        assert f.asked() == {"a": 3}
    assert (error.status, error.code) == (503, "upstream_unreachable")
    assert 800 <= int(error.headers["retry-after"]) <= 1200
    assert not error.transient


async def test_the_others_are_asked_until_all_are_open() -> None:
    async with fleet(a=ILL, b=ILL) as f:
        await opened(f, "a")
        with pytest.raises(UpstreamError) as raised:
            await text(f.lease("a", "b"))
        assert raised.value.status == 500
        assert f.asked() == {"a": 3, "b": 1}
        mended(f, "b")
        assert await text(f.lease("a", "b")) == REPLY
        mended(f, "b", ILL)
        await opened(f, "b")
        with pytest.raises(UpstreamDown, match="'a', 'b'"):
            await text(f.lease("a", "b"))
        assert f.asked()["a"] == 3


async def test_half_open_one_reply_tries_and_the_others_fail_at_once_until_it_has_begun() -> None:
    async with fleet(a=ILL) as f:
        await opened(f)
        mended(f, "a", Fault(hold=0))
        server, member = f.servers["a"], f.members["a"]
        assert server is not None
        member.health.answered()
        trial = asyncio.create_task(text(f.lease("a")))
        await server.until(lambda s: s.opened == 4)
        with pytest.raises(UpstreamDown) as raised:
            await text(f.lease("a"))
        assert server.opened == 4
        assert int(raised.value.headers["retry-after"]) >= 1
        server.release()
        assert await trial == REPLY
        assert member.health.state == "ok"
        mended(f, "a")
        assert await text(f.lease("a")) == REPLY


async def test_while_one_reply_tries_the_others_go_elsewhere() -> None:
    async with fleet(a=ILL, b=OK) as f:
        await opened(f)
        mended(f, "a", Fault(hold=0))
        server = f.servers["a"]
        assert server is not None
        f.members["a"].health.answered()
        trial = asyncio.create_task(text(f.lease("a")))
        await server.until(lambda s: s.opened == 4)
        assert await text(f.lease("a", "b")) == REPLY
        assert f.asked() == {"a": 4, "b": 1}
        server.release()
        await trial


async def test_a_trial_whose_client_leaves_makes_room_for_the_next() -> None:
    async with fleet(a=ILL) as f:
        await opened(f)
        mended(f, "a", Fault(stall="headers"))
        server, health = f.servers["a"], f.members["a"].health
        assert server is not None
        health.answered()
        trial = asyncio.create_task(text(f.lease("a")))
        await server.until(lambda s: s.opened == 4)
        assert not health.admits
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        assert health.state == "half-open"
        mended(f)
        assert await text(f.lease("a")) == REPLY


async def test_a_ping_brings_it_back_by_itself() -> None:
    async with fleet(a=ILL) as f:
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await text(f.lease("a"))
        mended(f)
        await until(lambda: f.members["a"].health.admits)
        assert await text(f.lease("a")) == REPLY
        assert f.members["a"].health.state == "ok"


async def test_a_reply_under_way_asks_an_open_upstream_all_the_same() -> None:
    async with fleet(a=OK) as f:
        lease = f.lease("a")
        await text(lease)
        mended(f, "a", ILL)
        await opened(f)
        mended(f)
        with pytest.raises(UpstreamDown):
            await text(f.lease("a"))
        assert await text(lease, prefix="One is here.") == " Two is here. Three is here."
        # That went well, so it is worth asking for others, too.
        assert await text(f.lease("a")) == REPLY


async def test_a_reply_under_way_goes_to_a_healthy_upstream_rather_than_to_an_open_one() -> None:
    async with fleet(a=OK, b=OK) as f:
        lease = f.lease("a", "b")
        await text(lease)
        mended(f, "a", ILL)
        await opened(f)
        assert await text(lease, prefix="One is here.") == " Two is here. Three is here."
        assert (lease.name, f.asked()["b"]) == ("b", 1)


async def test_a_reply_that_is_tried_again_and_again_counts_once() -> None:
    async with fleet(a=ILL) as f:
        lease = f.lease("a")
        for _ in range(5):
            with pytest.raises(UpstreamError):
                await text(lease)
        assert f.asked() == {"a": 5}
        assert f.members["a"].health.state == "ok"


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_no_clients_fault_opens_it(status: int) -> None:
    async with fleet(a=Fault(status=status)) as f:
        for _ in range(5):
            with pytest.raises(UpstreamError) as raised:
                await text(f.lease("a"))
            assert raised.value.status == status
        assert f.members["a"].health.state == "ok"


async def test_who_waited_for_a_place_meanwhile_is_not_sent_to_it_either() -> None:
    async with fleet(a=OK, terms={"a": Terms(max_concurrent=1, patience=5)}) as f:
        async with f.lease("a").open(ask()):
            waiting = asyncio.create_task(text(f.lease("a")))
            await asyncio.sleep(0)
            for _ in range(3):
                f.members["a"].health.enter().failed()
        with pytest.raises(UpstreamDown):
            await waiting
        assert f.asked() == {"a": 1}


async def test_a_lease_that_is_sent_away_tells_of_no_failover() -> None:
    async with fleet(a=ILL) as f:
        await opened(f)
        told = Told()
        targets = f.lease("a")._order
        with pytest.raises(UpstreamDown):
            await text(Lease(Targets(tuple(targets)), ask(), told))
        assert told == Told()
