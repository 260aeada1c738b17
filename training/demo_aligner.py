"""An aligner for the demo world by the recipe `tiny-cpu`, from rows to numbers, on a CPU.

    python -m training.demo_aligner --out runs/demo-aligner

Makes rows, trains on them with `training.recipe` from the demo's upstream (a model that knows this
world, makes mistakes in it, and has never reviewed anything), measures what was trained on held-out
rows and in the loop, and says how to serve it. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import stream_aligner_proxy
from training.corrections import Mix, Reviewed, synthetic
from training.evaluate import measure_problems, ratio
from training.generate import Writer
from training.heldout.__main__ import evaluate
from training.loops import LoopMode
from training.world.problems import problems
from training.world.split import Split, stream

UPSTREAM = Path(stream_aligner_proxy.__file__).parent / "demo" / "models" / "upstream"
# One sentence at a time; what such a small model cannot learn in minutes is left out.
MIX = Mix(whole=0, babble=0, cut=0, notes=0.12)


def lines(talk: Reviewed, source: str) -> Iterator[dict[str, Any]]:
    """The reviews of one conversation's sentences, in the format of docs/training.md."""
    question, group = list(talk.messages), talk.messages[-1]["content"]
    for row in talk.rows:
        yield {
            "question": question,
            "prefix": " ".join(talk.sentences[: row.at]),
            "last": row.sentence,
            "correction": row.sentence if row.correction is None else row.correction,
            "end": row.end,
            "source": source,
            "group": group,
        }


def rows(split: Split, seed: int, count: int, mix: Mix = MIX) -> Iterator[dict[str, Any]]:
    """Reviews of one split of the world, in the format of docs/training.md."""
    rng, made = stream(split, "recipe", seed), 0
    while made < count:
        talk = synthetic(rng, mix, split)
        for line in islice(lines(talk, "demo-world"), count - made):
            made += 1
            yield line
        question, group = list(talk.messages), talk.messages[-1]["content"]
        for answer, better in talk.whole[: count - made] if mix.whole else ():
            made += 1
            yield {
                "question": question,
                "answer": answer,
                "correction": answer if better is None else better,
                "source": "demo-world",
                "group": group,
            }


def write(file: Path, made: Iterator[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_suffix(".tmp")
    temp.write_text("".join(json.dumps(line) + "\n" for line in made), encoding="utf-8")
    temp.rename(file)


def train(
    out: Path, config: str, settings: list[str], threads: int, start: Path = UPSTREAM
) -> None:
    """Run the recipe as its users do, from the model in `start`."""
    command = [sys.executable, "-m", "training.recipe", "train", "--config", config]
    command += ["--data", str(out / "data"), "--out", str(out / "run")]
    for setting in [f"model.base={start}", *settings]:
        command += ["--set", setting]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.returncode)


def measure(model: Path, count: int, heldout: Path) -> dict[str, Any]:
    """Scores on rows, and accuracy of the upstream on held-out problems, alone and corrected."""
    scores = evaluate(model, [heldout], chances=False).overall
    kept, fixed = scores.keep_recall, scores.fixed
    spoiled = ratio(kept.whole - kept.part, scores.rows)
    print(f"held-out rows: {scores.rows}, {fixed.whole} of them wrong")
    print(f"  wrong sentences answered by the right one   {fixed.value:.1%}")
    print(f"  right sentences left alone                  {kept.value:.1%}")
    print(f"  right sentences rewritten, of all rows      {spoiled:.1%}")
    aligner, upstream = Writer.load(model, exact=True), Writer.load(UPSTREAM)
    asked = problems(2026, count, "test")
    modes: tuple[LoopMode, ...] = ("off", "stream")
    loop = [measure_problems(upstream, aligner, asked, mode, 0.0)[0] for mode in modes]
    print(f"held-out word problems answered rightly, of {count}:")
    for row in loop:
        who = "upstream alone" if row.mode == "off" else "with the aligner"
        print(f"  {who:18} {row.accuracy:.1%}")
    found = {"kept": kept.value, "fixed": fixed.value, "spoiled": spoiled}
    return {
        "rows": {"rows": scores.rows, "wrong": fixed.whole, **found},
        "loop": [asdict(row) for row in loop],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for rows, run and report")
    parser.add_argument("--config", default="tiny-cpu", help="recipe (default tiny-cpu)")
    parser.add_argument("--rows", type=int, default=6_000, help="rows to learn from")
    parser.add_argument("--heldout", type=int, default=400, help="rows held out")
    parser.add_argument("--problems", type=int, default=100, help="problems to answer")
    # With matrices this small, two threads wait for each other, above all on a busy machine.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--set", action="append", default=[], help="as for training.recipe")
    args = parser.parse_args()
    began = time.monotonic()
    data: Path = args.out / "data"
    if not (data / "train.jsonl").is_file():
        write(data / "heldout.jsonl", rows("test", 1, args.heldout))
        write(data / "train.jsonl", rows("train", 1, args.rows))
    train(args.out, args.config, args.set, args.threads)
    trained = time.monotonic() - began
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = args.out / "run" / "model"
    report = measure(model, args.problems, data / "heldout.jsonl")
    report |= {"training_seconds": round(trained), "seconds": round(time.monotonic() - began)}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['seconds']} s in all, {report['training_seconds']} s to make rows and train")
    print(f"serve it before the demo's upstream:\n\n  stream-aligner serve --aligner {model}\n")


if __name__ == "__main__":
    main()
