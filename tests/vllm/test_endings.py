"""Reviews and engines that end before their time: cancelled, too late, dead, closed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from stream_aligner_proxy.aligners.vllm_engine import VllmAligner
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Verdict
from tests.vllm.world import BOUND, CPU, all_gone, endless_model, offspring, reviews

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

REVIEW = reviews(1)[0]


class Running:
    """The engine's own count of running requests, from the statistics of its steps."""

    def __init__(self) -> None:
        self.now = 0
        self.changed = asyncio.Event()

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "Running":
        return self

    def record(self, scheduler_stats: Any, *args: Any, **more: Any) -> None:
        if scheduler_stats is not None and scheduler_stats.num_running_reqs != self.now:
            self.now = scheduler_stats.num_running_reqs
            self.changed.set()

    async def becomes(self, number: int) -> None:
        async with asyncio.timeout(BOUND):
            while self.now != number:
                self.changed.clear()
                await self.changed.wait()

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def running() -> Running:
    return Running()


@pytest.fixture(scope="module")
async def aligner(
    running: Running, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmAligner]:
    """One that writes for ever; its engine counts. Every test but the last leaves it ready."""
    folder = endless_model(tmp_path_factory.mktemp("endless") / "model")
    build = AsyncLLM.from_vllm_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AsyncLLM,
            "from_vllm_config",
            lambda config, **options: build(config, stat_loggers=[running]),
        )
        made = VllmAligner(folder, max_new_extra=4000, queue=3, timeout=None, draft="none", **CPU)
        await made.start()
    yield made
    await made.close()


async def begun(aligner: VllmAligner) -> asyncio.Task[Verdict]:
    """A review of which words have been written."""
    told = asyncio.Event()
    task = asyncio.create_task(aligner.review(REVIEW, lambda text: told.set()))
    async with asyncio.timeout(BOUND):
        await told.wait()
    return task


async def test_a_cancelled_review_is_aborted_in_the_engine(
    aligner: VllmAligner, running: Running
) -> None:
    first, second = await begun(aligner), await begun(aligner)
    await running.becomes(2)
    first.cancel()
    await running.becomes(1)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    second.cancel()
    await asyncio.wait({second})
    assert aligner._engine.get_num_unfinished_requests() == 0


async def test_a_review_past_its_deadline_fails_and_is_aborted(
    aligner: VllmAligner, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await begun(aligner)
    monkeypatch.setattr(aligner, "_timeout", 0.3)
    with pytest.raises(ReviewError, match=r"took longer than 0\.3 s"):
        await aligner.review(REVIEW)
    await running.becomes(1)
    other.cancel()
    await asyncio.wait({other})


async def test_no_more_reviews_than_the_queue_holds_reach_the_engine(
    aligner: VllmAligner, running: Running
) -> None:
    held = [await begun(aligner) for _ in range(3)]
    waiting = asyncio.create_task(aligner.review(REVIEW))
    await running.becomes(3)
    assert aligner._engine.get_num_unfinished_requests() == 3
    held.pop().cancel()
    await running.becomes(2)
    await running.becomes(3)
    for task in (*held, waiting):
        task.cancel()
    await asyncio.wait({*held, waiting})


async def test_a_revision_without_an_end_is_not_believed(aligner: VllmAligner) -> None:
    with pytest.raises(ReviewError, match="did not come to an end within its length limit"):
        await aligner.review(REVIEW)


async def test_reviews_fail_when_the_engine_dies_and_closing_leaves_no_process(
    aligner: VllmAligner,
) -> None:
    import os

    processes = offspring(os.getpid())
    core = next(one for one in processes if "EngineCore" in " ".join(one.cmdline()))
    task = await begun(aligner)
    core.kill()
    with pytest.raises(ReviewError, match="engine is dead"):
        async with asyncio.timeout(BOUND):
            await task
    assert not aligner.ready
    with pytest.raises(ReviewError, match="engine is dead"):
        await aligner.review(REVIEW)
    await aligner.close()
    assert all_gone(processes) == []
