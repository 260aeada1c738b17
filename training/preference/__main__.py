"""The preference stage: pairs of corrections, then DPO or ORPO on them.

    python -m training.preference pairs --aligner DIR --rows train/*.jsonl --out pairs.jsonl
        ask the aligner, and where it is wrong put the right answer beside its own
    python -m training.preference train --aligner DIR --pairs pairs.jsonl --out NEW
        prefer the right ones

Measure both with `python -m training.heldout`. Exit code 2: the folder or the rows are wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from training.config import ConfigError
from training.heldout.answers import Judge
from training.preference.pairs import different, mistakes, read, write
from training.recipe.rows import DataError
from training.recipe.rows import read as read_rows


def _pairs(options: argparse.Namespace) -> None:
    samples = list(read_rows(options.rows))
    if options.limit is not None and options.limit < len(samples):
        samples = random.Random(options.seed).sample(samples, options.limit)
    torch.manual_seed(options.seed)
    found = []
    rounds = [0.0, *[options.temperature] * options.draws]
    judge = Judge(options.aligner, batch=options.batch)
    usable = [s for s in samples if s.review.scope in judge.profile.scopes]
    with tqdm(total=len(samples) * len(rounds), unit="row", disable=not sys.stderr.isatty()) as bar:
        for temperature in rounds:
            found += mistakes(judge, usable, bar.update, temperature=temperature)
    found = different(found)
    if not found:
        raise DataError("the aligner answered every row rightly: there is nothing to prefer")
    write(found, options.out)
    kept = sum(pair.chosen == (pair.review.sentence, False) for pair in found)
    print(f"{len(found)} pairs from {len(samples)} rows ({kept} of sentences to be left alone)")


def _train(options: argparse.Namespace) -> None:
    # TRL is needed here only.
    from training.preference.tune import Tuning, tune  # noqa: PLC0415

    tuning = Tuning(
        method=options.method,
        beta=options.beta,
        lr=options.lr,
        epochs=options.epochs,
        batch=options.batch,
        length=options.length,
        likelihood=options.likelihood,
        keep_token=options.keep_token,
        seed=options.seed,
    )
    shown = tune(options.aligner, list(read(options.pairs)), options.out, tuning)
    print(", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    print(f"saved {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.preference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{pairs,train}")
    pairs = commands.add_parser("pairs", help="collect the aligner's own mistakes")
    pairs.add_argument("--rows", type=Path, nargs="+", required=True, help="JSON lines")
    pairs.add_argument("--limit", type=int, help="ask about so many rows, drawn at random")
    pairs.add_argument("--draws", type=int, default=1, help="sampled answers per row (default 1)")
    pairs.add_argument("--temperature", type=float, default=1.0, help="of these (default 1)")
    pairs.set_defaults(run=_pairs)
    train = commands.add_parser("train", help="prefer the right answers (needs TRL)")
    train.add_argument("--pairs", type=Path, required=True, help="JSON lines from `pairs`")
    train.add_argument("--method", choices=("dpo", "orpo"), default="dpo")
    train.add_argument("--beta", type=float, default=0.1)
    train.add_argument("--lr", type=float, default=2e-5)
    train.add_argument("--epochs", type=float, default=1.0)
    train.add_argument("--length", type=int, default=512, help="tokens of prompt and answer")
    train.add_argument(
        "--likelihood",
        type=float,
        default=0.2,
        help="dpo: share of the plain loss on the right answer (default 0.2)",
    )
    train.add_argument(
        "--keep-token", action="store_true", help="the aligner says keep by its token"
    )
    train.set_defaults(run=_train)
    for command in (pairs, train):
        command.add_argument("--aligner", type=Path, required=True, help="folder of the checkpoint")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--batch", type=int, default=16)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ConfigError, DataError, OSError) as error:
        print(f"training.preference: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
