"""Train an aligner from rows.

    python -m training.recipe recipes
    python -m training.recipe plan --config stream-aligner-2b --devices 8 --device-gib 80
    python -m training.recipe train --config tiny-cpu --data DIR --out DIR

Start `train` with torchrun or deepspeed for more than one process. A run that was stopped goes on
when the same command is given again. Exit codes: 0 done, 2 wrong config or data, 3 no space,
4 the loss is not a number.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.config import ConfigError
from training.recipe import estimate
from training.recipe.config import Recipe, load_recipe, named
from training.recipe.keeping import NoSpace
from training.recipe.rows import DataError, files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The deepspeed launcher hands it over; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("train", help="train, or go on where a run in OUT stopped")
    plan = commands.add_parser("plan", help="say what would run and what it takes; loads nothing")
    commands.add_parser("recipes", help="list the shipped recipes")
    for one in (run, plan):
        one.add_argument("--config", required=True, help="a YAML file, or a shipped recipe's name")
        one.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="another value for a key",
        )
    run.add_argument("--data", type=Path, required=True, help="folder with train*.jsonl, or a file")
    run.add_argument("--out", type=Path, required=True, help="folder for the run")
    plan.add_argument("--data", type=Path, help="rows, for the time (their characters / 4)")
    plan.add_argument("--devices", type=int, default=1, help="devices in all (default 1)")
    plan.add_argument("--device-gib", type=float, help="memory of one: says whether it fits")
    plan.add_argument("--peak-tflops", type=float, help="peak of one, 16-bit (default an H100's)")
    args = parser.parse_args(argv)
    try:
        if args.command == "recipes":
            _list()
            return 0
        recipe = load_recipe(args.config, args.set)
        if args.command == "plan":
            _plan(recipe, args)
            return 0
        from training.recipe.run import train  # noqa: PLC0415  (a plan needs no torch)
        from training.recipe.trainer import Diverged  # noqa: PLC0415

        try:
            train(recipe, args.data, args.out)
        except Diverged as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 4
    except ModuleNotFoundError as error:
        print(f"the package {error.name!r} is not installed (extra: recipe)", file=sys.stderr)
        return 2
    except (ConfigError, DataError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except NoSpace as error:
        print(f"{error}", file=sys.stderr)
        return 3
    return 0


def _list() -> None:
    for name in named():
        recipe = load_recipe(name)
        print(f"{name:20} {' '.join(recipe.about.split())}")


def _plan(recipe: Recipe, args: argparse.Namespace) -> None:
    shape = estimate.size(recipe)
    print(f"{recipe.name}: {recipe.method}, profile {recipe.model.profile}, {recipe.precision}")
    print(f"parameters        {shape.parameters / 1e9:.3g} billion")
    print(f"a step            {recipe.optim.batch} rows of up to {recipe.data.length} tokens")
    print(
        f"identity warm-up  {recipe.warmup.rows} rows x {recipe.warmup.epochs}, "
        f"lr {recipe.warmup.lr:g}"
    )
    print(f"correction        {recipe.correction.epochs} epochs, lr {recipe.correction.lr:g}")
    print(f"GiB per device, estimated, on {args.devices}:")
    print("  stage  offload  weights  grads  optimizer  activations  device  host")
    for stage in (0, 1, 2, 3):
        for offload in (False, True) if stage else (False,):
            chosen = (recipe.zero.stage, recipe.zero.offload) == (stage, offload)
            need = estimate.memory(estimate.at(recipe, stage, offload), shape, args.devices)
            parts = (need.weights, need.gradients, need.optimizer, need.activations)
            row = "  ".join(f"{x / estimate.GIB:9.1f}" for x in (*parts, need.device, need.host))
            fits = ""
            if args.device_gib:
                fits = "fits" if need.device / estimate.GIB <= args.device_gib else "does not fit"
            mark = "*" if chosen else " "
            print(f"{mark} {stage}      {'yes' if offload else 'no ':3}  {row}  {fits}")
    tokens, what = 1e6, "million tokens"
    if args.data:
        chars = sum(f.stat().st_size for f in files(args.data)[0])
        lines = sum(1 for f in files(args.data)[0] for _ in f.open("rb"))
        share = min(1.0, recipe.warmup.rows / max(1, lines)) * recipe.warmup.epochs
        tokens, what = chars / 4 * (recipe.correction.epochs + share), f"{args.data}"
    peak = args.peak_tflops or recipe.report.peak_tflops or estimate.PEAK["H100"]
    took = estimate.seconds(recipe, shape, tokens, args.devices, peak)
    print(f"time, estimated at 40% of {peak:g} TFLOP/s per device: {took:.0f} s for {what}")


if __name__ == "__main__":
    sys.exit(main())
