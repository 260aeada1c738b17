"""Routing by model name."""

import asyncio
from collections.abc import Mapping

import pytest

from stream_aligner_proxy.api import directory as directories
from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.core.errors import (
    ModelNotFound,
    UpstreamError,
    UpstreamRejected,
    UpstreamUnreachable,
)
from stream_aligner_proxy.core.health import Health

pytestmark = pytest.mark.anyio


class Listed:
    """An upstream that lists `ids`, or raises."""

    def __init__(self, name: str, *ids: str, error: UpstreamError | None = None) -> None:
        self.name = name
        self.ids = list(ids)
        self.error = error
        self.asked = 0
        self.with_key: list[str] = []
        self.health = Health()

    async def models(self, headers: Mapping[str, str] | None = None) -> list[dict[str, object]]:
        self.asked += 1
        await asyncio.sleep(0)
        if headers and "authorization" in headers:
            return [{"id": id} for id in self.with_key]
        if self.error is not None:
            raise self.error
        return [{"id": id, "owned_by": "them"} for id in self.ids]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


DOWN = UpstreamUnreachable("down")
NO_LIST = UpstreamRejected("no such route", status=404)


async def test_a_model_is_routed_to_the_upstream_that_lists_it() -> None:
    a, b = Listed("a", "one"), Listed("b", "two", "one")
    directory = Directory([a, b])
    assert await directory.pick("two") is b
    assert await directory.pick("one") is a  # configured first


async def test_a_known_model_is_routed_without_asking_again() -> None:
    a = Listed("a", "one")
    directory = Directory([a])
    for _ in range(3):
        await directory.pick("one")
    assert a.asked == 1


async def test_an_unknown_model_is_looked_for_once_a_second_and_not_found() -> None:
    a, clock = Listed("a", "one"), Clock()
    directory = Directory([a], clock=clock)
    await directory.pick("one")
    a.ids.append("new")
    clock.now += 1.1
    assert await directory.pick("new") is a
    for _ in range(3):  # a client's mistake, again and again
        with pytest.raises(ModelNotFound):
            await directory.pick("nobody")
    assert a.asked == 2
    clock.now += 1.1
    with pytest.raises(ModelNotFound):
        await directory.pick("nobody")
    assert a.asked == 3


async def test_requests_at_the_same_time_share_a_refresh() -> None:
    a = Listed("a", "one")
    directory = Directory([a])
    await asyncio.gather(*(directory.pick("one") for _ in range(20)))
    assert a.asked == 1


@pytest.mark.parametrize("error", [DOWN, NO_LIST])
async def test_the_only_upstream_gets_the_request_when_it_cannot_list(error: UpstreamError) -> None:
    a = Listed("a", error=error)
    assert await Directory([a]).pick("anything") is a


async def test_with_several_an_unknown_model_is_not_forwarded() -> None:
    with pytest.raises(UpstreamUnreachable, match="b") as raised:
        await Directory([Listed("a", "one"), Listed("b", error=DOWN)]).pick("two")
    assert raised.value.status == 503
    with pytest.raises(ModelNotFound):
        await Directory([Listed("a", "one"), Listed("b", error=NO_LIST)]).pick("two")


async def test_an_upstream_that_went_down_keeps_its_models() -> None:
    a, b = Listed("a", "one"), Listed("b", "two")
    directory = Directory([a, b])
    await directory.refresh()
    b.error = DOWN
    await directory.refresh()
    assert await directory.pick("two") is b
    assert [model["id"] for model in await directory.models({})] == ["one", "two"]


async def test_the_merged_list_names_each_model_once_and_is_kept_for_a_while() -> None:
    clock = Clock()
    a, b = Listed("a", "one", "two"), Listed("b", "two", "three")
    directory = Directory([a, b], clock=clock, ttl=30)
    models = await directory.models({})
    assert [model["id"] for model in models] == ["one", "two", "three"]
    assert models[0] == {"object": "model", "created": 0, "owned_by": "them", "id": "one"}
    clock.now = 29
    await directory.models({})
    assert a.asked == 1
    clock.now = 31
    await directory.models({})
    assert a.asked == 2


async def test_no_list_at_all_is_the_upstreams_error_unless_it_has_no_such_route() -> None:
    with pytest.raises(UpstreamUnreachable):
        await Directory([Listed("a", error=DOWN)]).models({})
    assert await Directory([Listed("a", error=NO_LIST)]).models({}) == []


async def test_an_upstream_that_was_down_is_asked_again_soon_where_there_is_nothing_else() -> None:
    clock = Clock()
    a = Listed("a", "one", error=DOWN)
    directory = Directory([a], clock=clock, ttl=30)
    with pytest.raises(UpstreamUnreachable):
        await directory.models({})
    a.error = None
    clock.now = 2
    assert [model["id"] for model in await directory.models({})] == ["one"]
    clock.now = 4
    await directory.models({})
    assert a.asked == 2


async def test_a_list_asked_with_a_clients_key_is_for_that_client_only() -> None:
    wants_key = UpstreamRejected("who?", status=401)
    a = Listed("a", error=wants_key)
    a.with_key = ["private"]
    directory = Directory([a])
    assert [m["id"] for m in await directory.models({"authorization": "Bearer x"})] == ["private"]
    with pytest.raises(UpstreamRejected):
        await directory.models({})


async def test_a_model_that_a_clients_key_shows_is_routed_beside_other_upstreams() -> None:
    wants_key = UpstreamRejected("who?", status=401)
    a, b = Listed("a", "one"), Listed("b", error=wants_key)
    b.with_key = ["private"]
    directory = Directory([a, b])
    with pytest.raises(UpstreamUnreachable):
        await directory.pick("private")
    assert await directory.pick("private", {"authorization": "Bearer x"}) is b
    asked = b.asked
    assert await directory.pick("private", {"authorization": "Bearer x"}) is b
    assert b.asked == asked
    assert [model["id"] for model in await directory.models({})] == ["one"]


class Pinged(Listed):
    """Answers a ping when it is told to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pinged = asyncio.Event()

    async def ping(self) -> None:
        self.pinged.set()
        await self.told


async def test_who_hangs_does_not_hold_up_what_is_said_of_those_that_answer() -> None:
    """A kubelet waits for seconds; every replica would leave the service for one bad upstream."""
    one, two, well = Pinged("one"), Pinged("two"), Pinged("well")
    well.told.set_result(None)
    async with asyncio.timeout(20):
        answers = await Directory([one, two, well]).pings()
    assert answers == {"one": "upstream_timeout", "two": "upstream_timeout", "well": "ok"}
    assert one.told.cancelled()  # nobody asks any more
    assert two.told.cancelled()


async def test_as_long_as_nobody_answers_all_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(directories, "_PING_SECONDS", 0.0)
    down, slow = Pinged("down"), Pinged("slow")
    asking = asyncio.create_task(Directory([down, slow]).pings())
    async with asyncio.timeout(20):
        await down.pinged.wait()
        await slow.pinged.wait()
        down.told.set_exception(DOWN)
        await asyncio.sleep(0)
        slow.told.set_result(None)
        answers = await asking
    assert answers == {"down": "upstream_unreachable", "slow": "ok"}


async def test_whoever_asks_without_a_key_has_the_upstreams_asked_once_a_second() -> None:
    asked = 0

    class Counting(Listed):
        async def ping(self) -> None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)

    clock = Clock()
    directory = Directory([Counting("a")], clock=clock)
    told = await asyncio.gather(*(directory.pings() for _ in range(50)))
    assert (told, asked) == ([{"a": "ok"}] * 50, 1)
    clock.now += 1.1
    await directory.pings()
    assert asked == 2
