"""What each choice of the recipe is worth, on the demo world: one run for each, all else equal.

    python -m training.ablations --out runs/ablations [--only base no-warm-up …] [--problems 500]

Each variant makes its rows, trains by the recipe `tiny-cpu` from the demo's upstream, and is
measured on the same held-out rows and problems: choices of the recipe, sizes of the aligner, and
what a further round on the upstream's own mistakes brings. What is done already is not done again.
At the end the table is written to OUT/ablations.json and OUT/ablations.svg; where nothing was left
out, with the gain for each number of sentences that may be corrected, by `base` and by the demo's
own aligner. All of it takes about four hours of a core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from training.ablations.plot import draw
from training.ablations.rounds import by_corrections
from training.ablations.runs import run
from training.ablations.variants import VARIANTS
from training.demo_aligner import UPSTREAM, write
from training.world.problems import problems

BETTER = UPSTREAM.parent / "aligner"


def gains(model: Path, kept: Path, count: int) -> list[dict[str, Any]]:
    """What `by_corrections` finds; read where it was found before."""
    if not kept.is_file():
        found = by_corrections(model, problems(2026, count, "test"))
        write(kept, iter(found))
    return [json.loads(line) for line in kept.read_text().splitlines()]


def main() -> None:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of these: {', '.join(names)}")  # fmt: skip
    parser.add_argument("--rows", type=int, default=6_000, help="rows to learn from, each")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = []
    for variant in VARIANTS:
        if variant.name in args.only:
            torch.manual_seed(1)
            out = args.out / variant.name
            table.append(run(variant, out, args.rows, args.problems, args.threads))
            print(json.dumps(table[-1]), flush=True)
    report: dict[str, Any] = {
        "facts": {"rows": args.rows, "problems": args.problems},
        "variants": table,
    }
    report["by_corrections"] = {
        name: gains(model, kept, min(200, args.problems))
        for name, model in (("better", BETTER), ("base", args.out / "base" / "run" / "model"))
        if (kept := args.out / f"gains-{name}.json").is_file() or args.only == names
    }
    (args.out / "ablations.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "ablations.svg").write_text(draw(report))
    for name, found in report.get("by_corrections", {}).items():
        for line in found:
            print(name, json.dumps(line))


if __name__ == "__main__":
    main()
