"""Train one variant and measure it; what is done already is read again."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.prompts import PROFILES
from training.ablations.variants import Variant
from training.config import load_config
from training.demo_aligner import MIX, UPSTREAM, lines, rows, train, write
from training.evaluate import measure_problems
from training.generate import Writer
from training.heldout.__main__ import evaluate
from training.mistakes import collect
from training.pretrain import PretrainConfig, pretrain
from training.world.problems import problems

ASKED, HELD_OUT = 500, 200  # rows to measure on, and to choose the best checkpoint by
_BASE = Path(__file__).parent.parent / "configs" / "demo-aligner-base.yaml"
_PRETRAINING = 600  # steps of 4,608 tokens
_CONVERSATION = 3.5  # sentences that a conversation brings, about


def own_rows(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Reviews of what the upstream itself writes on train problems, judged by the world."""
    asked = round(count / _CONVERSATION * 1.5)  # one in five is a whole answer, and passed over
    talks = collect(Writer.load(UPSTREAM, seed=seed), seed, asked, MIX.notes)
    found = [line for talk in talks for line in lines(talk, "own")]
    if len(found) < count:
        raise ValueError(f"{asked} conversations brought {len(found)} rows, not {count}")
    yield from found[:count]


def _train_rows(variant: Variant, count: int) -> list[dict[str, Any]]:
    made = {"made": count, "half": count // 2, "own": 0}[variant.rows]
    found = list(rows("train", variant.seed, made, variant.mix)) if made else []
    if made < count:
        found += own_rows(variant.seed, count - made)
    # The recipe mixes the rows as well, but packs those that stand together.
    random.Random(variant.seed).shuffle(found)
    return found


def _start(variant: Variant, out: Path) -> Path:
    if variant.start:
        return out.parent / variant.start / "run" / "model"
    if variant.shape is None:
        return UPSTREAM
    base = out / "base"
    if not base.is_dir():
        shape = {f"shape.{name}": getattr(variant.shape, name) for name in variant.shape.__slots__}
        steps = {
            "optim.steps": _PRETRAINING,
            "optim.warmup": 60,
            "optim.lr": min(3e-3, 0.512 / variant.shape.hidden),
        }
        pretrain(load_config(PretrainConfig, _BASE, {**shape, **steps}), base)
    return base


def _prefer(variant: Variant, out: Path, model: Path) -> None:
    """Pairs where the model is wrong on the rows it learnt from last, then DPO on them."""
    start, pairs = model.parent.parent, out / "pairs.jsonl"
    common = ["--aligner", str(model), "--seed", str(variant.seed)]
    data = str(start / "data" / "train.jsonl")
    stages = {
        pairs: ["pairs", "--rows", data, "--batch", "96", "--out", str(pairs)],
        out / "run" / "model": [
            "train", "--pairs", str(pairs), "--out", str(out / "run" / "model"), "--epochs", "2",
        ],
    }  # fmt: skip
    for made, stage in stages.items():
        if not made.exists():
            command = [sys.executable, "-m", "training.preference", *stage, *common]
            subprocess.run(command, check=True)


def run(variant: Variant, out: Path, count: int, asked: int, threads: int) -> dict[str, Any]:
    """Train on `count` rows, measure on held-out rows and `asked` problems."""
    done = out / "report.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    model = out / "run" / "model"
    data, start = out / "data", _start(variant, out)
    if not (data / "heldout.jsonl").is_file():
        # Held-out rows are those of the base's mix, so that all are asked the same; whole answers
        # can only be asked about whole answers.
        held = variant.mix if variant.mode == "whole" else MIX
        write(out / "asked.jsonl", rows("test", 1, ASKED, held))
        write(data / "heldout.jsonl", rows("test", 2, HELD_OUT, held))
    if variant.prefer:
        _prefer(variant, out, start)
    else:
        if not (data / "train.jsonl").is_file():
            write(data / "train.jsonl", iter(_train_rows(variant, round(count * variant.share))))
        train(out, "tiny-cpu", list(variant.settings), threads, start)
    row = {
        "variant": variant.name,
        "says": variant.says,
        **measure(variant, model, out / "asked.jsonl", asked),
    }
    done.write_text(json.dumps(row, indent=1) + "\n")
    return row


def measure(variant: Variant, model: Path, heldout: Path, asked: int) -> dict[str, Any]:
    """Shares with their 95 % intervals on held-out rows; the loop on held-out problems."""
    scores = evaluate(model, [heldout], chances=False).overall
    found: dict[str, Any] = {}
    for name in ("keep_recall", "fixed"):
        share = getattr(scores, name)
        found |= {name: share.value, f"{name}_interval": share.interval, f"{name}_of": share.whole}
    upstream, aligner = Writer.load(UPSTREAM), Writer.load(model, exact=True)
    tasks, profile = problems(2026, asked, "test"), PROFILES[variant.profile]
    loop = measure_problems(upstream, aligner, tasks, variant.mode, 0.0, profile=profile)[0]
    return {
        **found,
        "problems": asked,
        "accuracy": loop.accuracy,
        # Of whole answers nobody asks sentence by sentence.
        "loop_fixed": None if math.isnan(loop.fix_rate) else loop.fix_rate,
        "loop_over_correction": loop.over_correction,
    }
