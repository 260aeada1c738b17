"""What each policy of the loop does: reviews, restarts, lost work, time, and accuracy.

Three tables:

- `policies`: on the demo world, with its real models. One session per policy and problem, the
  policies in turn, so that a noisy machine slows all alike.
- `policies_ahead`: how far ahead to read and to review, in virtual time (see `bench.stream`).
- `edits`: how large real corrections are, for `material_edit`: the share of them whose edit
  distance, over the longer text, is below a threshold. `mr-ben` holds wrong steps of recorded
  solutions and what a human made of them, `paradetox` rude sentences and neutral ones.
"""

import argparse
import asyncio
import gzip
import json
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from bench.paced import text_of
from bench.report import Row, publish
from bench.splitter import data_folder
from bench.stack import MODELS, demo_model, free_port, process
from bench.stream import POLICY, SEEDS, Cell, Timeline, floor, timeline
from stream_aligner_proxy.aligners import registry
from stream_aligner_proxy.core.edits import edit_distance
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Turn
from stream_aligner_proxy.session import Session
from stream_aligner_proxy.upstream.client import HttpUpstream
from training.world.judge import grade
from training.world.problems import Problem, problems

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
VARIANTS = {
    "default": Policy(),
    **{
        f"restart_on material, {share}": Policy(restart_on="material", material_edit=share)
        for share in THRESHOLDS
    },
    **{f"max_continuations {most}": Policy(max_continuations=most) for most in (0, 1, 2)},
    **{f"max_reviews {most}": Policy(max_reviews=most) for most in (0, 1, 2, 4)},
    **{f"merge_below {least}": Policy(merge_below=least) for least in (20, 40)},
    "early_review false": Policy(early_review=False),
    "adaptive false, 4/2": Policy(adaptive=False, lookahead=4, review_ahead=2),
    "adaptive false, 32/16": Policy(adaptive=False),
    "whole": Policy(mode=Mode.WHOLE),
}
CELLS = [
    Cell(rate, review, share, 100, 50)
    for rate, review in ((50, 200), (100, 500), (200, 500))
    for share in (0.0, 0.1, 0.5, 1.0)
]
AHEAD = {
    **{
        f"fixed {lookahead}/{reviews}": replace(
            POLICY, adaptive=False, lookahead=lookahead, review_ahead=reviews
        )
        for lookahead, reviews in ((1, 1), (2, 2), (4, 2), (8, 4), (16, 8), (32, 16))
    },
    "adaptive": POLICY,
}


async def replies(
    held_out: list[Problem], base_url: str, model: str, temperature: float, seed: int
) -> dict[str, list[Timeline]]:
    """One timeline for each policy and problem."""
    upstream = HttpUpstream("demo", base_url, "vllm")
    aligner = registry.create(
        {"backend": "transformers", "path": str(MODELS / "aligner"), "threads": 1}
    )
    await aligner.start()
    seen: dict[str, list[Timeline]] = {name: [] for name in VARIANTS}
    try:
        await reply(held_out[0], upstream, aligner, Policy(), {"model": model})  # warm
        for index, problem in enumerate(tqdm(held_out)):
            body = {"model": model, "temperature": temperature, "seed": seed * 100_003 + index}
            for name, policy in VARIANTS.items():
                seen[name].append(await reply(problem, upstream, aligner, policy, body))
    finally:
        await aligner.close()
        await upstream.aclose()
    return seen


async def reply(
    problem: Problem,
    upstream: HttpUpstream,
    aligner: Aligner,
    policy: Policy,
    body: dict[str, object],
) -> Timeline:
    turn = Turn("user", problem.question)
    messages = [{"role": "user", "content": problem.question}]
    request = ChatRequest("demo", {**body, "messages": messages, "max_tokens": 256}, (turn,), 256)
    clock = asyncio.get_running_loop().time
    seen = Timeline(begun=clock())
    session = Session(request, upstream=upstream, aligner=aligner, policy=policy)
    finished = await session.run(seen)
    seen.total, seen.cost = clock() - seen.begun, finished.cost
    return seen


def on_the_demo_world(count: int, temperature: float, seed: int) -> list[Row]:
    held_out = problems(seed, count, "test")
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/v1"
    with process(
        ["stream_aligner_proxy.demo.upstream", "--port", str(port)],
        f"http://127.0.0.1:{port}/health",
    ):
        model = demo_model(base_url)
        seen = asyncio.run(replies(held_out, base_url, model, temperature, seed))
    rows: list[Row] = []
    for name, got in seen.items():
        answers = zip(held_out, got, strict=True)
        rows.append(
            {
                "policy": name,
                "n": len(got),
                "temperature": temperature,
                "accuracy": mean(grade(problem.answer, one.text) for problem, one in answers),
                "corrections": mean(one.cost.corrections for one in got),
                "restarts": mean(one.cost.branches - 1 for one in got),
                "reviews": mean(one.cost.reviews for one in got),
                "reviews_in_vain": mean(one.cost.reviews_in_vain for one in got),
                "skipped": mean(one.cost.skipped for one in got),
                "discarded_tokens": mean(one.cost.discarded_tokens for one in got),
                "seconds": mean(one.total for one in got),
                "first_text_s": mean(one.first_text for one in got if one.times),
            }
        )
    return rows


def ahead() -> list[Row]:
    rows: list[Row] = []
    for cell in tqdm(CELLS):
        texts = [text_of(cell.sentences, cell.corrected, seed) for seed in SEEDS]
        floors = [floor(cell, text, timeline("upstream_alone", cell, text).total) for text in texts]
        for name, policy in AHEAD.items():
            got = [timeline("ours", cell, text, policy) for text in texts]
            row = cell.row("ours", "virtual")
            row["policy"] = name
            row["total_s"] = mean(one.total for one in got)
            row["total_over_floor"] = mean(one.total for one in got) / mean(floors)
            row["wasted_tokens"] = mean(one.wasted for one in got)
            row["reviews"] = mean(one.cost.reviews for one in got)
            row["reviews_in_vain"] = mean(one.cost.reviews_in_vain for one in got)
            rows.append(row)
    return rows


def corrections(data: Path) -> Iterator[tuple[str, str, str]]:
    """Source, original and corrected text."""
    for path in sorted((data / "mr-ben").glob("*.json.gz")):
        if path.name == "coding.json.gz":
            continue
        with gzip.open(path, "rt", encoding="utf-8") as file:
            solutions = [one for group in json.load(file).values() for one in group]
        for one in solutions:
            number = str(one["Model_Solution_First_Error_Step"])
            steps, rectified = (
                one["Model_Solution_Steps"],
                one["Model_Solution_Rectified_First_Error_Step"],
            )
            if number.isdigit() and 0 < int(number) <= len(steps):
                for new in rectified:
                    yield "mr-ben", steps[int(number) - 1], new
    with gzip.open(data / "paradetox" / "paradetox.tsv.gz", "rt", encoding="utf-8") as table:
        next(table)
        for line in table:
            original, *neutral = line.rstrip("\n").split("\t")
            for new in filter(None, neutral):
                yield "paradetox", original, new


def edits(data: Path) -> list[Row]:
    found: dict[str, list[float]] = {}
    for source, original, new in corrections(data):
        if original and new and isinstance(new, str) and original != new:
            longest = max(len(original), len(new))
            distance = edit_distance(original, new, longest)
            found.setdefault(source, []).append(distance / longest)
    rows: list[Row] = []
    for source, distances in found.items():
        distances.sort()
        row: Row = {"corrections": source, "n": len(distances)}
        row["median"] = distances[len(distances) // 2]
        for share in THRESHOLDS:
            row[f"below_{share}"] = bisect_left(distances, share) / len(distances)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="held-out problems (default 300)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args()
    begun = time.monotonic()
    data = data_folder()
    if data is None:
        print("no data: STREAM_ALIGNER_DATA is not set; without the table of edits")
    else:
        publish("edits", edits(data), "bench.policies")
    publish("policies_ahead", ahead(), "bench.policies")
    rows = on_the_demo_world(options.count, options.temperature, options.seed)
    publish("policies", rows, "bench.policies")
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
