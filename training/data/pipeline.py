"""From sources to shards. Three passes, so that memory does not grow with the rows' text:

1. Read each source, build rows, filter and dedupe them, and spool what is left to one file
   (`intake`).
2. Split the questions (`split`), and see how many kept rows the training split can bear.
3. Deal the rows out to shards at random, shuffle each shard, write it (`dealing`); read it all
   again, to check for leaks; report.

In memory: 16 bytes (and a set's overhead) per row for the duplicates and as much for the
contradictions, about a kilobyte per question for the near-duplicates, and one shard. The output
folder appears only when it is whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.data import files, report
from training.data.config import BuildConfig
from training.data.dealing import Dealer, Dealt, keep_chance
from training.data.files import DataError, Trouble
from training.data.intake import Intake
from training.data.rows import key_text
from training.data.split import SPLITS, Split, Splits, check_splits
from training.data.tally import Tally


def build(config: BuildConfig, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Build the set into `out`, which must not exist or be empty; return the report's data.

    Raises `ConfigError`, `DataError`; of these, too many bad records leave `OUT.rejected.jsonl`.
    """
    config.check()
    empty(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made = work / "made"
        made.mkdir()
        data = _build(config, work, made, out, say)
        if out.exists():
            out.rmdir()
        made.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return data


def empty(out: Path) -> None:
    """Raises `DataError` where something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty; choose another folder or remove it")


def _build(
    config: BuildConfig, work: Path, made: Path, out: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    spool, aside = work / "rows.jsonl", made / "rejected.jsonl"
    with (
        spool.open("w", encoding="utf-8") as rows,
        aside.open("w", encoding="utf-8", errors="backslashreplace") as rejected,
    ):
        intake = Intake(config, rows.write, rejected.write)
        for source in config.parsed():
            intake.take(source)
    try:
        intake.bearable()
    except DataError:
        kept = out.with_name(f"{out.name}.rejected.jsonl")
        aside.replace(kept)
        say(f"what was set aside, and why: {kept}")
        raise
    splits = intake.questions.split(config.split)
    chance = keep_chance(intake.kinds, splits.of, config.keep_share)
    dealt = Dealer(config, splits.of, chance, work).deal(spool, intake.rows, made)
    check_splits(_written(made, dealt), config.split.near)
    if not dealt.splits["train"].rows:
        say(f"no rows to train on: all {dealt.all.rows} are held out")
    data = _data(config, intake, splits, dealt)
    for line in report.write(made, data):
        say(line)
    return data


def _written(made: Path, dealt: Dealt) -> Iterator[tuple[Split, str, str]]:
    for split, names in dealt.files.items():
        for name in names:
            for place, example in files.rows(made / name):
                if isinstance(example, Trouble):
                    raise DataError(f"{place} was written and cannot be read: {example.reason}")
                yield split, example.group, key_text(example.question)


def _data(config: BuildConfig, intake: Intake, splits: Splits, dealt: Dealt) -> dict[str, Any]:
    questions = Counter(splits.of.values())
    return {
        **dealt.all.plain(),
        "read": {name: one.plain() for name, one in intake.read.items()},
        "kept_rows_dropped_for_balance": intake.rows - dealt.all.rows,
        "splits": {
            split: {
                "rows": one.rows,
                "questions": questions[split],
                "keep_share": keep_share(one),
                "fingerprint": one.fingerprint,
                "files": dealt.files[split],
            }
            for split, one in ((split, dealt.splits[split]) for split in SPLITS)
        },
        "questions_joined": splits.joined,
        "questions_in_largest_family": splits.largest,
        "config": json.loads(json.dumps(asdict(config))),  # as it is read back
    }


def keep_share(tally: Tally) -> float:
    """Of the sentence rows, how many are kept ones."""
    sentences = {key: count for key, count in tally.kinds.items() if key[1] == "sentence"}
    kept = sum(count for key, count in sentences.items() if key[2] == "keep")
    return round(kept / sum(sentences.values()), 4) if sentences else 0.0
