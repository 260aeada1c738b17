"""Thousands of aligned streams over real HTTP while everything fails: the upstream, the aligner's
server, clients, workers. Docs: docs/faults.md.

Each stream's faults follow from the seed and its number (`bench.faulty.plan`). Checked: no
character that the aligner has not committed reaches a client, every stream ends as its API says,
the proxy's counters agree with what clients saw, and nothing is left over afterwards.

    python -m bench.faults [--streams 2000] [--seed N] [--workers 2]
    python -m bench.faults --seed N --only K        # one stream alone, with its transcript
"""

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from bench.faulty.client import Seen, play
from bench.faulty.plan import plan
from bench.faulty.proxy import (
    AlignerServer,
    Proxy,
    Reading,
    copy_tokenizer,
    serving,
    write_config,
)
from bench.faulty.reading import REVIEW_ERRORS, Judged, judge, transcript
from bench.faulty.upstream import FaultyUpstream
from bench.report import publish, table
from stream_aligner_proxy.settings import ServerSettings

AT_ONCE = 64
WARM_UP = 200  # streams before memory is measured
_RESTART_EVERY = 6.0  # seconds between two deaths of the aligner's server, on average
_KILL_EVERY = 10.0  # of a worker
_QUIET_SECONDS = 25.0
_SHOWN = 5  # transcripts
# How long after it has come back the aligner's server may still be taken for dead.
_NOTICED_SECONDS = 3.0


@dataclass
class Outcome:
    """`faults`: what is wrong, each with the number of its stream, or about the whole run."""

    seed: int
    streams: int = 0
    unreviewed: int = 0
    invalid: list[tuple[int, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    before: Reading | None = None
    warm: Reading | None = None
    after: Reading | None = None
    ends: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)

    def row(self) -> dict[str, int | float | None]:
        assert self.before is not None
        assert self.after is not None
        assert self.warm is not None
        tasks = None
        if self.before.tasks is not None and self.after.tasks is not None:
            tasks = max(0, self.after.tasks - self.before.tasks)
        return {
            "streams": self.streams,
            "seed": self.seed,
            "unreviewed_chars": self.unreviewed,
            "invalid_ends": len(self.invalid),
            "leaked_tasks": tasks,
            "leaked_sockets": max(0, self.after.sockets - self.before.sockets),
            "rss_growth_mb": round(self.after.rss_mb - self.warm.rss_mb, 1),
        }


class Suite:
    """A running proxy between an upstream and an aligner that fail."""

    def __init__(
        self, proxy: Proxy, upstream: FaultyUpstream, aligner: AlignerServer, seed: int
    ) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.aligner = aligner
        self.outcome = Outcome(seed)
        self._dice = random.Random(seed)
        self._killed: list[float] = []

    async def run(self, streams: int, *, warm_up: int = WARM_UP, at_once: int = AT_ONCE) -> Outcome:
        outcome = self.outcome
        outcome.before = await self.proxy.reading()
        # Its numbers are others than those of the streams that count.
        await self._play(range(1_000_000, 1_000_000 + warm_up), at_once)
        outcome.warm = await self._quiet()
        await self._play(range(streams), at_once)
        outcome.streams = streams
        outcome.after = await self._quiet()
        outcome.shown = self.upstream.done
        return outcome

    async def _play(self, numbers: Iterable[int], at_once: int) -> list[tuple[Seen, Judged]]:
        before = await self.proxy.metrics()
        waiting = iter(numbers)
        judged: list[tuple[Seen, Judged]] = []

        async def one_after_another() -> None:
            for number in waiting:
                seen = await play(plan(self.outcome.seed, number), self.proxy.port)
                judged.append((seen, self._judge(seen)))

        disturbing = [asyncio.create_task(self._restart_the_aligner())]
        if self.proxy.workers > 1:
            disturbing.append(asyncio.create_task(self._kill_workers()))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(one_after_another())
        finally:
            for task in disturbing:
                task.cancel()
            for error in await asyncio.gather(*disturbing, return_exceptions=True):
                if isinstance(error, Exception):
                    raise error
            await self.aligner.restart(0.0)
        await self._settled()
        if self.proxy.workers == 1:
            self.outcome.wrong += compare(before, await self.proxy.metrics(), judged)
        return judged

    def _judge(self, seen: Seen) -> Judged:
        excused = any(seen.began - 0.5 <= at <= seen.ended + 0.5 for at in self._killed)
        judged = judge(seen, excused=excused)
        if not judged.fault and seen.plan.clean and judged.error and not excused:
            judged.fault = self._unexpected(seen, judged.error)
        outcome = self.outcome
        outcome.unreviewed += judged.unreviewed
        if judged.fault:
            number = seen.plan.number
            outcome.invalid.append((number, judged.fault))
            print(f"stream {number}: {judged.fault}", file=sys.stderr)
            if len(outcome.invalid) <= _SHOWN:
                print(transcript(seen, judged), file=sys.stderr)
        end = seen.how if seen.how != "whole" else judged.error or "finished"
        outcome.ends[end] += 1
        return judged

    def _unexpected(self, seen: Seen, error: str) -> str:
        """Where nothing was to fail, only the death of the aligner's server can have."""
        met = any(
            start < seen.ended and seen.began < end + _NOTICED_SECONDS
            for start, end in self.aligner.outages
        )
        restarting = self.aligner.down_since is not None
        if error in REVIEW_ERRORS and (met or restarting):
            return ""
        return f"nothing was to fail, and it ended with {error}"

    async def _restart_the_aligner(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.5, 1.5) * _RESTART_EVERY)
            await self.aligner.restart(self._dice.uniform(0.0, 1.0))

    async def _kill_workers(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.5, 1.5) * _KILL_EVERY)
            worker = self._dice.choice(self.proxy.processes())
            self._killed.append(asyncio.get_running_loop().time())
            worker.send_signal(signal.SIGKILL)

    async def _settled(self) -> None:
        """Nothing is being written any more."""
        try:
            async with asyncio.timeout(_QUIET_SECONDS):
                while True:
                    told = await self.proxy.metrics()
                    names = ("open_replies", "open_branches")
                    left = sum(told[key] for key in told if key[0] in names)
                    if not left and not self.upstream.writing and not self.upstream.opened:
                        return
                    if self.proxy.workers > 1 and not self.upstream.writing:
                        return  # what a killed worker had open it can count no more
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.outcome.wrong.append(
                f"still open: {left:g} replies and branches, "
                f"{self.upstream.writing} of the upstream's replies, {self.upstream.opened} of its "
                "connections"
            )

    async def _quiet(self) -> Reading:
        """The reading when it is back to where it began, or when that was waited for in vain."""
        before = self.outcome.before
        assert before is not None
        deadline = asyncio.get_running_loop().time() + _QUIET_SECONDS
        while True:
            now = await self.proxy.reading()
            late = asyncio.get_running_loop().time() > deadline
            fewer = now.tasks is None or before.tasks is None or now.tasks <= before.tasks
            if late or (fewer and now.sockets <= before.sockets):
                return now
            await asyncio.sleep(0.25)


def compare(
    before: dict[tuple[str, tuple[str, ...]], float],
    after: dict[tuple[str, tuple[str, ...]], float],
    judged: Sequence[tuple[Seen, Judged]],
) -> list[str]:
    """Where the proxy's counters and its clients disagree. Of a client that left, or of a reply of
    several choices, nobody knows how each ended: they make a range."""
    counted: Counter[str] = Counter()
    for key, value in after.items():
        if key[0] == "replies_total":
            counted[key[1][1]] += round(value - before.get(key, 0.0))
    wrong = []
    certain: Counter[str] = Counter()
    unsure = refused = 0
    for seen, one in judged:
        plan = seen.plan
        if seen.how != "whole" or (plan.choices > 1 and one.error):
            unsure += plan.choices
        elif one.error is None:
            certain["finished"] += plan.choices
        elif plan.api != "messages":  # whose errors have kinds, and no codes
            certain[_counted_as(one.error)] += 1
        else:
            unsure += 1
            refused += 1
    total = sum(seen.plan.choices for seen, _ in judged)
    for outcome in {*certain, *counted}:
        least = certain[outcome]
        if not least <= counted[outcome] <= least + unsure:
            wrong.append(
                f"counted as {outcome}: {counted[outcome]}; clients saw {least}, and {unsure} may"
            )
    if not total - unsure <= sum(counted.values()) <= total:
        wrong.append(f"{sum(counted.values())} replies were counted of {total}")
    return wrong


_OURS = frozenset(
    (
        *("review_failed", "upstream_unreachable", "upstream_timeout", "upstream_garbled"),
        *("upstream_error", "overloaded", "deadline_exceeded", "internal_error", "finished"),
        *("continuation_failed", "upstream_rejected"),
    )
)


def _counted_as(code: str) -> str:
    """An upstream's own codes are one."""
    return code if code in _OURS else "upstream_rejected"


@asynccontextmanager
async def suite(seed: int, workers: int = 1) -> AsyncIterator[Suite]:
    debug = "debug" in ServerSettings.model_fields
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copy_tokenizer(folder)
        upstream = FaultyUpstream()
        address = await stack.enter_async_context(upstream.serve())
        aligner = AlignerServer(folder)
        await aligner.start()
        stack.push_async_callback(aligner.stop)
        config = write_config(folder, address, aligner.url, workers, debug=debug)
        proxy = await stack.enter_async_context(serving(config, workers))
        yield Suite(proxy, upstream, aligner, seed)
        with contextlib.suppress(OSError):
            log = config.with_suffix(".log").read_text()
            if "Traceback" in log:
                print(log[-6000:], file=sys.stderr)


async def replay(seed: int, number: int) -> str:
    async with suite(seed) as running:
        seen = await play(plan(seed, number), running.proxy.port)
        return transcript(seen, judge(seen))


async def measure(seed: int, streams: int, workers: int) -> Outcome:
    async with suite(seed, workers) as running:
        return await running.run(streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--only", type=int, help="the number of one stream")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1, 1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr)
    loop = import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        if options.only is not None:
            print(runner.run(replay(seed, options.only)))
            return
        outcome = runner.run(measure(seed, options.streams, options.workers))
    row = outcome.row()
    for title, counts in (("ends", outcome.ends), ("faults shown", outcome.shown)):
        told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        print(f"{title}: {told}", file=sys.stderr)
    for wrong in outcome.wrong:
        print(f"wrong: {wrong}", file=sys.stderr)
    if options.workers == 1 and options.streams >= 2000:
        publish("faults", [row], "bench.faults")
    else:
        print(table([row]))
    if outcome.invalid or outcome.wrong or outcome.unreviewed:
        sys.exit(f"failed; again with --seed {seed}")


if __name__ == "__main__":
    main()
