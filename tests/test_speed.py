"""The session keeps to its floor: in virtual time, so exactly and on any machine."""

import asyncio

import pytest

from bench import virtual
from bench.paced import PacedUpstream, text_of
from bench.stream import POLICY, Cell, floor, timeline
from stream_aligner_proxy.core.records import Policy


def test_virtual_time_jumps_from_timer_to_timer_in_their_order():
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, loop.time()))

        await asyncio.gather(wait("late", 3600), wait("soon", 0.001), wait("between", 60))
        return seen

    assert virtual.run(main()) == [("soon", 0.001), ("between", 60), ("late", 3600)]


def test_virtual_time_does_not_wait_for_what_can_never_happen():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="could ever happen"):
        virtual.run(main())


def test_the_paced_upstream_writes_on_while_it_is_not_read():
    text = text_of(5, 0.0, seed=1)
    upstream = PacedUpstream(text, tokens_per_s=10, restart=0.5)

    async def main() -> None:
        async with upstream.open(None) as chunks:
            await anext(chunks)
            await asyncio.sleep(1.0)

    virtual.run(main())
    assert upstream.written == 11


CELLS = [
    Cell(rate, review, share, 20, 50)
    for rate in (20, 200)
    for review in (10, 500)
    for share in (0.0, 0.5)
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_reply_takes_no_longer_than_its_floor_nor_than_the_published_loop(cell):
    text = text_of(cell.sentences, cell.corrected, seed=1)
    alone = timeline("upstream_alone", cell, text)
    ours = timeline("ours", cell, text)
    assert ours.text == text.final
    assert ours.total <= floor(cell, text, alone.total) * (1.05 if cell.corrected else 1.02)
    assert ours.total < timeline("published_loop", cell, text).total
    first = alone.times[len(text.sentences[0]) - 1] + cell.review_ms / 1000
    assert ours.first_text <= 1.1 * first


def test_a_told_rewrite_frees_the_upstream_earlier():
    cell = Cell(200, 500, 0.5, 20, 50)
    text = text_of(cell.sentences, cell.corrected, seed=1)
    at_the_verdict, told = timeline("ours", cell, text), timeline("ours_told", cell, text)
    assert told.wasted < at_the_verdict.wasted
    assert told.total <= at_the_verdict.total
    assert told.first_text < at_the_verdict.first_text / 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_adaptive_loop_is_no_slower_than_any_fixed_setting(share):
    cell = Cell(200, 500, share, 40, 50)
    text = text_of(cell.sentences, cell.corrected, seed=2)
    adaptive = timeline("ours", cell, text, POLICY)
    for lookahead, reviews in ((1, 1), (4, 2), (8, 4), (16, 8), (32, 16)):
        policy = Policy(
            max_continuations=1000, adaptive=False, lookahead=lookahead, review_ahead=reviews
        )
        fixed = timeline("ours", cell, text, policy)
        assert adaptive.total <= fixed.total * 1.003
        assert adaptive.wasted <= fixed.wasted * 1.003
