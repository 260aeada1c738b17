"""Measure an aligner on held-out rows, and write a report that can be looked at.

    python -m training.heldout --aligner DIR --rows FILE.jsonl [FILE.jsonl …] --out report

Rows are those of `training.data`. Writes report.html, report.md and report.json with plots; prints
the table. Exit code 2: the folder or the rows are wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from training.config import ConfigError
from training.heldout.answers import Answer, Judge
from training.heldout.report import Report
from training.heldout.scores import Judged, by_source, score
from training.recipe.rows import DataError, Sample, fingerprint, read

_MISSES = 40


def judged(sample: Sample, answer: Answer) -> Judged:
    """One row's outcome."""
    sentence, verdict = sample.review.sentence, answer.verdict
    got = None
    if verdict is not None:
        got = sentence if verdict.replacement is None else verdict.replacement
    return Judged(
        sample.source,
        sentence,
        sample.correction,
        got,
        sample.kept,
        sample.end,
        verdict is not None and verdict.end,
        answer.keep_chance,
    )


def evaluate(
    folder: Path,
    paths: Sequence[Path],
    *,
    profile: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    chances: bool = True,
) -> Report:
    """`limit`: so many rows at most, drawn by `seed`. Without `chances` there is no calibration.
    Raises `ConfigError` and `DataError`."""
    judge = Judge(folder, profile=profile, batch=batch)
    every = list(read(paths))
    samples = [s for s in every if s.review.scope in judge.profile.scopes]
    if not samples:
        raise DataError(f"no row that the profile {judge.profile.name!r} can ask about")
    if limit is not None and limit < len(samples):
        samples = random.Random(seed).sample(samples, limit)
    with tqdm(total=len(samples), unit="row", disable=not sys.stderr.isatty()) as bar:
        answers = judge.answer(
            samples,
            lambda done: bar.update(done),  # noqa: PLW0108  (its result)
            chances=chances,
        )
    rows = [judged(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    facts = {
        "aligner": folder.name,
        "profile": judge.profile.name,
        "rows": ", ".join(path.name for path in paths),
        "fingerprint": fingerprint(every),
        "drawn": f"{len(samples)} of {len(every)}, seed {seed}",
    }
    misses = [row for row in rows if not row.exact][:_MISSES]
    return Report(facts, score(rows), by_source(rows), misses)


def main(arguments: Sequence[str] | None = None) -> int:
    doc = __doc__ or ""
    parser = argparse.ArgumentParser(
        prog="python -m training.heldout",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--aligner", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--profile", help="prompt profile, where the checkpoint does not say")
    parser.add_argument("--limit", type=int, help="measure so many rows, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default 0)")
    parser.add_argument("--batch", type=int, default=32, help="rows at once (default 32)")
    options = parser.parse_args(arguments)
    try:
        report = evaluate(
            options.aligner,
            options.rows,
            profile=options.profile,
            limit=options.limit,
            seed=options.seed,
            batch=options.batch,
        )
    except (ConfigError, DataError, OSError) as error:
        print(f"training.heldout: {error}", file=sys.stderr)
        return 2
    report.write(options.out)
    widths = [max(len(line[at]) for line in report.table()) for at in range(len(report.table()[0]))]
    for line in report.table():
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print(f"\nwritten to {options.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
