"""Parts are made once, started once, and closed when nobody holds them any more."""

import asyncio

import pytest

from stream_aligner_proxy.operating.pool import Pool

pytestmark = pytest.mark.anyio


class Parts:
    def __init__(self) -> None:
        self.made: list[str] = []
        self.started: list[str] = []
        self.closed: list[str] = []
        self.fails = False
        self.pool: Pool[str] = Pool(self._start, self._close)

    async def _start(self, part: str) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("no")
        self.started.append(part)

    async def _close(self, part: str) -> None:
        self.closed.append(part)

    def take(self, key: str):
        def make() -> str:
            self.made.append(key)
            return key

        return self.pool.take(key, make)


async def test_the_same_settings_share_a_part_until_the_last_lets_go() -> None:
    parts = Parts()
    one, other, third = parts.take("a"), parts.take("a"), parts.take("b")
    await asyncio.gather(one.start(), other.start(), third.start())
    assert parts.made == ["a", "b"]
    assert sorted(parts.started) == ["a", "b"]
    await one.release()
    assert parts.closed == []
    await other.release()
    assert parts.closed == ["a"]
    again = parts.take("a")
    assert parts.made == ["a", "b", "a"]
    again.drop()
    assert parts.closed == ["a"]
    await third.release()
    assert len(parts.pool) == 0


async def test_a_part_that_could_not_start_is_tried_again() -> None:
    parts = Parts()
    one, other = parts.take("a"), parts.take("a")
    parts.fails = True
    with pytest.raises(RuntimeError):
        await one.start()
    parts.fails = False
    await other.start()
    assert parts.started == ["a"]
    await one.release()
    await other.release()
    assert parts.closed == ["a"]
