"""What each choice of the recipe is worth, on the demo world: one run for each, all else equal.

    python -m training.ablations --out runs/ablations [--only base no-warm-up …] [--problems 200]

Each variant makes its rows, trains by the recipe `tiny-cpu` from the demo's upstream, and is
measured on the same held-out rows and problems. What is done already is not done again. At the end
the table is printed and written, with the gain for each number of sentences that may be corrected,
to OUT/ablations.json and OUT/ablations.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stream_aligner_proxy.core.records import Review, Verdict
from training.corrections import Mix
from training.demo_aligner import MIX, UPSTREAM, rows, train, write
from training.evaluate import measure_problems, ratio
from training.generate import Writer
from training.heldout.__main__ import evaluate
from training.heldout.plots import bars
from training.loops import Episode, LoopMode, ModelReviewer, run_stream
from training.world.judge import grade
from training.world.problems import Problem, problems


@dataclass(frozen=True, slots=True)
class Variant:
    """`says`: what differs from `base`. `mode`: how the aligner is asked in the loop, None where
    the loop here cannot (it speaks `compact` only)."""

    name: str
    says: str
    mix: Mix = MIX
    settings: Sequence[str] = field(default_factory=tuple)
    mode: LoopMode | None = "stream"


VARIANTS = (
    Variant("base", "500 warm-up rows, 45 % of the sentences wrong, sentence by sentence, compact"),
    Variant("no-warm-up", "no identity warm-up", settings=("warmup.rows=0",)),
    Variant("long-warm-up", "2,000 warm-up rows", settings=("warmup.rows=2000",)),
    Variant("few-wrong", "20 % of the sentences wrong", mix=replace(MIX, wrong=0.2)),
    Variant("many-wrong", "75 % of the sentences wrong", mix=replace(MIX, wrong=0.75)),
    Variant(
        "published-profile",
        "the published prompt as plain text",
        settings=("model.profile=stream-aligner-plain",),
        mode=None,
    ),
    Variant(
        "whole-answers", "whole answers instead of sentences", replace(MIX, whole=1), (), "whole"
    ),
)
CORRECTED = (0, 1, 2, 3, 4, None)


def run(variant: Variant, out: Path, count: int, asked: int, threads: int) -> dict[str, Any]:
    """Train and measure one; read what an earlier call found."""
    done = out / "report.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    data = out / "data"
    if not (data / "train.jsonl").is_file():
        # Held-out rows are those of the base's mix, so that all are asked the same; whole answers
        # can only be asked about whole answers.
        held = variant.mix if variant.mode == "whole" else MIX
        write(data / "heldout.jsonl", rows("test", 1, 400, held))
        write(data / "train.jsonl", rows("train", 1, count, variant.mix))
    train(out, "tiny-cpu", list(variant.settings), threads)
    model = out / "run" / "model"
    scores = evaluate(model, [data / "heldout.jsonl"]).overall
    row: dict[str, Any] = {
        "variant": variant.name,
        "says": variant.says,
        "keep_recall": scores.keep_recall.value,
        "fixed": scores.fixed.value,
        "over_correction": scores.over_correction.value,
        "accuracy": None,
    }
    if variant.mode is not None:
        upstream, aligner = Writer.load(UPSTREAM), Writer.load(model, exact=True)
        tasks = problems(2026, asked, "test")
        row["accuracy"] = measure_problems(upstream, aligner, tasks, variant.mode, 0.0)[0].accuracy
    done.write_text(json.dumps(row, indent=1) + "\n")
    return row


class FirstOnly:
    """A reviewer that corrects the first `most` sentences that it would, and keeps the rest."""

    def __init__(self, inner: ModelReviewer, most: int | None) -> None:
        self._inner, self._most = inner, most

    def __call__(self, asked: Sequence[tuple[Episode, Review]]) -> list[Verdict]:
        verdicts = self._inner(asked)
        if self._most is None:
            return verdicts
        left = {id(e): self._most - e.corrections for e, _ in asked}
        given = []
        for (episode, _), verdict in zip(asked, verdicts, strict=True):
            if not verdict.kept and left[id(episode)] <= 0:
                given.append(Verdict())
                continue
            left[id(episode)] -= not verdict.kept
            given.append(verdict)
        return given


def by_corrections(model: Path, tasks: list[Problem]) -> list[dict[str, Any]]:
    """Accuracy of the upstream's replies where so many of their sentences may be corrected."""
    upstream, reviewer = Writer.load(UPSTREAM), ModelReviewer(Writer.load(model, exact=True))
    found = []
    for most in CORRECTED:
        episodes = [Episode(({"role": "user", "content": p.question},), p) for p in tasks]
        run_stream(upstream, FirstOnly(reviewer, most), episodes, temperature=0.0)
        right = sum(grade(p.answer, e.committed) for p, e in zip(tasks, episodes, strict=True))
        name = "all" if most is None else str(most)
        found.append({"corrected": name, "accuracy": ratio(right, len(tasks)), "n": len(tasks)})
    return found


def main() -> None:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", type=int, default=6_000, help="rows to learn from, each")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    table = []
    for variant in VARIANTS:
        if variant.name in args.only:
            out = args.out / variant.name
            table.append(run(variant, out, args.rows, args.problems, args.threads))
            print(json.dumps(table[-1]), flush=True)
    report: dict[str, Any] = {
        "facts": {"rows": args.rows, "problems": args.problems},
        "variants": table,
    }
    base = args.out / "base" / "run" / "model"
    if base.is_dir():
        report["by_corrections"] = by_corrections(base, problems(2026, args.problems, "test"))
    (args.out / "ablations.json").write_text(json.dumps(report, indent=1) + "\n")
    shown = {row["variant"]: row["fixed"] for row in table}
    (args.out / "ablations.svg").write_text(
        bars(shown, "wrong sentences answered by the right one")
    )
    for line in report.get("by_corrections", ()):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
