"""The line before an aligner: who waits is counted, and how long those waited who were taken up."""

import asyncio
from pathlib import Path

import pytest

from stream_aligner_proxy.aligners.queueing import Queue
from stream_aligner_proxy.aligners.rules import RulesAligner
from stream_aligner_proxy.core.ports import Queueing
from tests.aligners.test_transformers_engine import CHANGED, KEPT, Gate, ask, running
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_who_finds_no_place_waits_and_is_told_of_when_it_has_one() -> None:
    clock, waited = Clock(), list[float]()
    queue = Queue(1, clock=clock)
    queue.waited = waited.append
    leave = asyncio.Event()

    async def stay() -> None:
        async with queue.place():
            await leave.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stay())
        tasks.create_task(stay())
        await until(lambda: queue.free == 0 and queue.waiting == 1)
        clock.now = 5.0
        leave.set()
    assert waited == [0.0, 5.0]
    assert (queue.waiting, queue.free) == (0, 1)


async def test_who_is_withdrawn_before_its_turn_did_not_wait() -> None:
    waited = list[float]()
    queue = Queue(1)
    queue.waited = waited.append

    async def come_too_late() -> None:
        async with queue.place():
            raise AssertionError("there was no place")

    async with queue.place():
        late = asyncio.create_task(come_too_late())
        await until(lambda: queue.waiting == 1)
        late.cancel()
        await asyncio.wait((late,))
        assert queue.waiting == 0
    assert len(waited) == 1


async def test_a_review_waits_until_the_models_thread_has_taken_it_in() -> None:
    waited = list[float]()
    async with running(max_batch=1, prefill=False) as aligner:
        assert isinstance(aligner, Queueing)
        aligner.queue.waited = waited.append
        gate = Gate(aligner)
        first = ask(aligner, KEPT)
        await gate.entered()
        second = ask(aligner, CHANGED)
        await until(lambda: aligner.queue.waiting == 1)
        assert waited == []
        gate.stay_open()
        await asyncio.gather(first, second)
        assert aligner.queue.waiting == 0
    assert len(waited) == 2
    assert 0 <= waited[0] <= waited[1]


def test_rules_have_no_queue() -> None:
    assert not isinstance(RulesAligner(Path(__file__)), Queueing)
