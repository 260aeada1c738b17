"""Build both demo models from scratch, in order: what `make demo-models` calls.

    python -m training.demo_models --out stream_aligner_proxy/demo/models

Stages that are finished in the work directory are not run again; delete it to start over.
`--quick` trains a few steps of each stage, to see that the whole sequence runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
QUICK_STEPS = 5


def stages(work: Path, quick: bool) -> list[tuple[str, Path, list[str]]]:
    """Return each stage's name, what it makes, and its command after `python -m`."""
    short = ["--steps", str(QUICK_STEPS)] if quick else []
    upstream, base = work / "upstream", work / "aligner-base"
    mistakes, count = work / "mistakes.jsonl", "6" if quick else "3000"

    def config(name: str) -> list[str]:
        return ["--config", str(CONFIGS / f"demo-{name}.yaml")]

    def aligner(name: str, start: Path) -> list[str]:
        rows = ["--mistakes", str(mistakes), *short]
        return ["training.train_aligner", *config(name), "--base", str(start), *rows]

    first, second = work / "aligner-1", work / "aligner-2"
    made = {
        "upstream": (upstream, ["training.pretrain", *config("upstream"), *short]),
        "aligner base": (base, ["training.pretrain", *config("aligner-base"), *short]),
        "the upstream's mistakes": (
            mistakes,
            ["training.mistakes", "--upstream", str(upstream), "--count", count],
        ),
        "aligner, first part": (first, aligner("aligner", base)),
        "aligner, second part": (second, aligner("aligner-polish", first)),
        "aligner": (work / "aligner", aligner("aligner-finish", second)),
    }
    return [(name, out, [*cmd, "--out", str(out)]) for name, (out, cmd) in made.items()]


def publish(model: Path, out: Path) -> None:
    """Put a finished model in place of the one in `out`."""
    temp = out.with_name(f".{out.name}-new")
    shutil.rmtree(temp, ignore_errors=True)
    shutil.copytree(model, temp)
    shutil.rmtree(out, ignore_errors=True)
    temp.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="gets upstream/ and aligner/")
    parser.add_argument("--work", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    parser.add_argument("--quick", action="store_true", help="a few steps each: a check, no model")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    took: dict[str, float] = {}
    for name, makes, command in stages(args.work, args.quick):
        if makes.exists():
            print(f"== {name}: {makes} is there already")
            continue
        print(f"== {name}: python -m {' '.join(command)}", flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", *command], check=True)
        took[name] = round(time.monotonic() - started)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("upstream", "aligner"):
        publish(args.work / name, args.out / name)
    print(f"seconds: {json.dumps(took)}\nmodels are in {args.out}")


if __name__ == "__main__":
    main()
