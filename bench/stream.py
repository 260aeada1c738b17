"""How long a reply takes, over the speeds of upstream and aligner: the loop against its floor.

Each method writes the same replies:

- `upstream_alone`: the upstream, unreviewed;
- `ours`: the proxy's session, loop and splitter in mode `stream`;
- `published_loop`: as published (arXiv 2501.05336): write one sentence, stop, review it, restart
  from the committed text. In its favour it stops at the full stop itself and throws nothing away;
- `whole`: the same session in mode `whole`; in its favour, its one review takes as long as that of
  a sentence;
- `ours_told`, `whole_told`: the same with an aligner that tells its revision word by word while it
  writes it, evenly over the review.

The floor of a reply is the upstream alone, a review and a restart for each corrected sentence, and
a review of the last one where that is not corrected. A restart takes 50 ms (`--restart-ms`) and
then a token's time to the first token. The loop may continue after every correction here
(`max_continuations` is out of the way).

The grid runs in virtual time (`bench.virtual`), which is exact: means over three texts. Some cells
also run as processes that talk HTTP: an SSE upstream, the proxy, a client; medians of `--real`
replies of one text, beside what virtual time says of the same (`virtual_total_s`).
"""

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from statistics import mean, median
from typing import Any

import httpx

from bench import virtual
from bench.paced import MEAN_TOKENS, REQUEST, PacedAligner, PacedUpstream, Text, text_of
from bench.report import Row, publish
from bench.stack import free_port, process
from stream_aligner_proxy.core.records import Cost, Delivery, Mode, Policy, Review
from stream_aligner_proxy.core.sentences import SentenceSplitter
from stream_aligner_proxy.session import Session

RATES = (20, 50, 100, 200)
REVIEWS_MS = (10, 50, 200, 500)
SHARES = (0.0, 0.2, 0.5)
LENGTHS = (5, 20, 100)
SEEDS = (1, 2, 3)
METHODS = ("upstream_alone", "ours", "ours_told", "published_loop", "whole", "whole_told")
POLICY = Policy(max_continuations=1_000_000)
REAL = ((50, 50, 0.0, 5), (100, 200, 0.2, 10), (200, 500, 0.1, 20), (200, 200, 0.5, 10))


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    tokens_per_s: float
    review_ms: float
    corrected: float
    sentences: int
    restart_ms: float

    def row(self, method: str, clock: str) -> Row:
        return {
            "method": method,
            "clock": clock,
            "tokens_per_s": self.tokens_per_s,
            "review_ms": self.review_ms,
            "corrected": self.corrected,
            "sentences": self.sentences,
        }


@dataclass
class Timeline:
    """What a client saw: when text came, in seconds from the request, which was at `begun`."""

    begun: float = 0.0
    times: list[float] = field(default_factory=list)
    text: str = ""
    total: float = 0.0
    wasted: int = 0
    cost: Cost = field(default_factory=Cost)

    def take(self, text: str, now: float) -> None:
        if text:
            self.times.append(now)
            self.text += text

    async def deliver(self, delivery: Delivery) -> None:
        self.take(delivery.text, asyncio.get_running_loop().time() - self.begun)

    @property
    def first_text(self) -> float:
        return self.times[0]

    @property
    def longest_stall(self) -> float:
        """The longest time without new text after the first."""
        return max((b - a for a, b in pairwise([*self.times, self.total])), default=0.0)


async def upstream_alone(upstream: PacedUpstream) -> Timeline:
    seen = Timeline()
    clock = asyncio.get_running_loop().time
    async with upstream.open(REQUEST) as chunks:
        async for chunk in chunks:
            seen.take(chunk.text, clock())
    seen.total = clock()
    return seen


async def through_session(
    upstream: PacedUpstream, aligner: PacedAligner, policy: Policy
) -> Timeline:
    seen = Timeline()
    clock = asyncio.get_running_loop().time
    session = Session(REQUEST, upstream=upstream, aligner=aligner, policy=policy, clock=clock)
    finished = await session.run(seen)
    seen.total, seen.cost = clock(), finished.cost
    return seen


async def published_loop(upstream: PacedUpstream, aligner: PacedAligner) -> Timeline:
    seen = Timeline()
    clock = asyncio.get_running_loop().time
    over = False
    while not over:
        splitter = SentenceSplitter(after=seen.text)
        async with upstream.open(REQUEST, prefix=seen.text) as chunks:
            async for chunk in chunks:
                splitter.feed(chunk.text)
                if splitter.seems_over:
                    break
        if not (text := splitter.rest):
            break
        review = Review(REQUEST.conversation, seen.text, text.strip())
        new = (await aligner.review(review)).replacement
        seen.take(text if new is None else text.replace(review.sentence, new), clock())
    seen.total = clock()
    return seen


def timeline(method: str, cell: Cell, text: Text, policy: Policy | None = None) -> Timeline:
    """One reply in virtual time."""
    upstream = PacedUpstream(text, cell.tokens_per_s, cell.restart_ms / 1000)
    aligner = PacedAligner(cell.review_ms / 1000, tells=method.endswith("_told"))
    match method:
        case "upstream_alone":
            seen = virtual.run(upstream_alone(upstream))
        case "published_loop":
            seen = virtual.run(published_loop(upstream, aligner))
        case "whole" | "whole_told":
            seen = virtual.run(through_session(upstream, aligner, Policy(mode=Mode.WHOLE)))
        case "ours" | "ours_told":
            seen = virtual.run(through_session(upstream, aligner, policy or POLICY))
        case _:
            raise ValueError(method)
    if method != "upstream_alone":
        assert seen.text == text.final, "not the text it should be"
    seen.wasted = upstream.written - text.tokens
    return seen


def floor(cell: Cell, text: Text, alone: float) -> float:
    review, restart = cell.review_ms / 1000, cell.restart_ms / 1000
    last = 0 if text.ends_corrected else review
    return alone + text.corrected * (review + restart) + last


def measured(cell: Cell, seeds: Iterable[int]) -> list[Row]:
    """A row for each method: means over the seeds' replies."""
    replies: dict[str, list[Timeline]] = defaultdict(list)
    floors, ideal_first = [], []
    for seed in seeds:
        text = text_of(cell.sentences, cell.corrected, seed)
        for method in METHODS:
            replies[method].append(timeline(method, cell, text))
        alone = replies["upstream_alone"][-1]
        floors.append(floor(cell, text, alone.total))
        ideal_first.append(alone.times[len(text.sentences[0]) - 1] + cell.review_ms / 1000)
    loop_total = mean(seen.total for seen in replies["published_loop"])
    rows = []
    for method, seen in replies.items():
        total = mean(one.total for one in seen)
        first = mean(one.first_text for one in seen)
        rows.append(
            {
                **cell.row(method, "virtual"),
                "total_s": total,
                "first_text_s": first,
                "longest_stall_s": mean(one.longest_stall for one in seen),
                "wasted_tokens": mean(one.wasted for one in seen),
                "reviews_in_vain": mean(one.cost.reviews_in_vain for one in seen),
                "total_over_floor": total / mean(floors),
                "first_text_over_floor": first / mean(ideal_first),
                "speedup_over_published_loop": loop_total / total,
                "virtual_total_s": total,
            }
        )
    return rows


def over_http(cells: Iterable[Cell], repeats: int) -> list[Row]:
    """Rows for the upstream alone and the proxy in both modes; medians, the cells in turn."""
    rows: list[Row] = []
    port, own = free_port(), free_port()
    upstream, proxy = f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{own}"
    arguments = ["bench.paced_servers", "upstream", "--port", str(port)]
    with (
        process(arguments, f"{upstream}/models"),
        process(
            ["bench.paced_servers", "proxy", "--port", str(own), "--upstream", upstream],
            f"{proxy}/readyz",
        ),
        httpx.Client(timeout=300, trust_env=False) as client,
    ):
        for cell in cells:
            text = text_of(cell.sentences, cell.corrected, seed=SEEDS[0])
            seen: dict[str, list[Timeline]] = {"upstream_alone": [], "ours": [], "whole": []}
            for _ in range(repeats):
                for method, replies in seen.items():
                    before = client.get(f"{upstream}/written").json()
                    url = upstream if method == "upstream_alone" else f"{proxy}/v1"
                    mode = {"ours": "stream", "whole": "whole"}.get(method)
                    replies.append(one_over_http(client, url, cell, mode))
                    assert mode is None or replies[-1].text == text.final
                    # A closed run is counted when the upstream notices.
                    time.sleep(0.05)
                    written = client.get(f"{upstream}/written").json() - before
                    replies[-1].wasted = written - text.tokens
            alone = median(reply.total for reply in seen["upstream_alone"])
            for method, replies in seen.items():
                row = cell.row(method, "real")
                total = median(reply.total for reply in replies)
                first = median(reply.first_text for reply in replies)
                row["total_s"], row["first_text_s"] = total, first
                row["longest_stall_s"] = median(reply.longest_stall for reply in replies)
                row["wasted_tokens"] = median(reply.wasted for reply in replies)
                row["total_over_floor"] = total / floor(cell, text, alone)
                row["virtual_total_s"] = timeline(method, cell, text).total
                rows.append(row)
    return rows


def one_over_http(client: httpx.Client, url: str, cell: Cell, mode: str | None) -> Timeline:
    question = json.dumps({**asdict(cell), "seed": SEEDS[0]})
    body: dict[str, Any] = {
        "model": "paced",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
    }
    if mode is not None:
        body["stream_aligner"] = {"mode": mode}
    seen = Timeline()
    begun = time.perf_counter()
    with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                content = chunk["choices"][0]["delta"].get("content") or ""
                seen.take(content, time.perf_counter() - begun)
    seen.total = time.perf_counter() - begun
    return seen


def summary(rows: list[Row]) -> str:
    """The worst cell for each aim."""
    ours = [row for row in rows if row["method"] == "ours" and row["clock"] == "virtual"]

    def number(row: Row, key: str) -> float:
        value = row[key]
        assert isinstance(value, int | float)
        return float(value)

    def worst(aim: str, key: str, those: list[Row], *, least: bool = False) -> str:
        if not those:
            return f"- {aim}: no such cell"
        row = (min if least else max)(those, key=lambda row: number(row, key))
        where = ", ".join(
            f"{name} {row[name]}"
            for name in ("tokens_per_s", "review_ms", "corrected", "sentences")
        )
        return f"- {aim}: worst {number(row, key):.3f} ({where})"

    # Where half of the sentences are corrected, the floor itself may be less than twice as fast.
    slow = [
        row
        for row in ours
        if number(row, "review_ms") / 1000 >= 2 * MEAN_TOKENS / number(row, "tokens_per_s")
        and number(row, "speedup_over_published_loop") * number(row, "total_over_floor") >= 2
    ]
    per_sentence: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for row in ours:
        if row["corrected"] == 0:
            key = (number(row, "tokens_per_s"), number(row, "review_ms"))
            per_sentence[key].append(number(row, "total_over_floor"))
    flat = max(max(those) / min(those) for those in per_sentence.values())
    none = [row for row in ours if row["corrected"] == 0]
    some = [row for row in ours if row["corrected"] != 0]
    return "\n".join(
        (
            worst("total over floor, nothing corrected (1.02)", "total_over_floor", none),
            worst("total over floor, with corrections (1.05)", "total_over_floor", some),
            worst("first text over first sentence + review (1.1)", "first_text_over_floor", ours),
            worst(
                "times as fast as the published loop (1)",
                "speedup_over_published_loop",
                ours,
                least=True,
            ),
            worst(
                "the same where a review takes two sentences, and the floor is at 2 (2)",
                "speedup_over_published_loop",
                slow,
                least=True,
            ),
            f"- total over floor, longest against shortest reply, nothing corrected: {flat:.3f}",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restart-ms", type=float, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--real", type=int, default=5, help="replies per real cell (default 5)")
    options = parser.parse_args()
    rows: list[Row] = []
    for rate, review, share, length in product(RATES, REVIEWS_MS, SHARES, LENGTHS):
        rows += measured(Cell(rate, review, share, length, options.restart_ms), options.seeds)
    if options.real:
        cells = [Cell(*real, options.restart_ms) for real in REAL]
        rows += over_http(cells, options.real)
    publish("stream", rows, "bench.stream")
    print(summary(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
