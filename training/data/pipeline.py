"""From sources to shards. Three passes, so that memory does not grow with the rows' text:

1. Read each source, build rows, filter and dedupe them, and spool what is left to one file.
2. Split the questions, and see how many kept rows each split can bear.
3. Deal the rows out to shards at random, shuffle each shard, write it, check for leaks, report.

In memory: 16 bytes (and a set's overhead) per row for the duplicates, about a kilobyte per
question for the near-duplicates, and one shard. The output folder appears only when it is whole.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from training.data import files, hub, report
from training.data.config import BuildConfig, SourceConfig
from training.data.files import DataError, Trouble, expand
from training.data.filters import Filter
from training.data.make import Maker
from training.data.rows import (
    BadRecord,
    Example,
    Form,
    Row,
    SetAside,
    digest,
    form,
    from_dict,
    key_text,
    to_dict,
)
from training.data.sources.registry import source as source_named
from training.data.split import SPLITS, Questions, Split, Splits, check_splits
from training.data.tally import Tally

T = TypeVar("T")


@dataclass(slots=True)
class Read:
    """What became of one source's records."""

    records: int = 0
    rows: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """A progress bar on a terminal, nothing otherwise."""
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, unit=" rows", disable=not sys.stderr.isatty(), leave=False
    )
    return bar


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
        data = _Build(config, work, made).run(out, say)
        made.chmod(0o755)
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


class _Build:
    def __init__(self, config: BuildConfig, work: Path, made: Path) -> None:
        self._config = config
        self._spool = work / "rows.jsonl"
        self._work, self._made = work, made
        self._questions = Questions()
        self._read: dict[str, Read] = {}
        self._seen: set[bytes] = set()
        self._filter = Filter(config.filters)
        self._kinds: Counter[tuple[str, bool]] = Counter()  # group, kept: sentence rows only
        self._dropped = 0  # kept rows, for the balance

    def run(self, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        set_aside = self._made / "rejected.jsonl"
        with (
            self._spool.open("w", encoding="utf-8") as spool,
            set_aside.open("w", encoding="utf-8", errors="backslashreplace") as rejected,
        ):
            for source in self._config.parsed():
                self._take(source, spool.write, rejected.write)
        try:
            self._bearable()
        except DataError:
            kept = out.with_name(f"{out.name}.rejected.jsonl")
            set_aside.replace(kept)
            say(f"what was set aside, and why: {kept}")
            raise
        splits = self._questions.split(self._config.split)
        tallies, tally, written = self._deal(splits)
        check_splits(self._written(), self._config.split.near)
        data = self._report(tally, tallies, splits, written)
        for line in report.write(self._made, data):
            say(line)
        return data

    # -- the first pass -------------------------------------------------------------------------

    def _take(
        self, told: SourceConfig, spool: Callable[[str], Any], reject: Callable[[str], Any]
    ) -> None:
        source = source_named(told.name)
        read = self._read.setdefault(source.name, Read())
        make = Maker(
            source.name,
            source.similarity if told.similarity is None else told.similarity,
            self._config.code,
            told.whole,
            _beside(told.path),
        )
        evaluation = source.evaluation if told.evaluation is None else told.evaluation

        def aside(place: str, stage: str, reason: str, what: Any) -> None:
            entry = {"source": source.name, "at": place, "stage": stage, "reason": reason}
            if what is not None:
                entry["row"] = what
            reject(json.dumps(entry, ensure_ascii=False, default=str) + "\n")

        for place, record in progress(_found(told), source.name):
            read.records += 1
            if isinstance(record, Trouble):
                read.rejected[_brief(record.reason)] += 1
                aside(place, "read", record.reason, None)
                continue
            try:
                made = [_text_only(example) for example in source.read(record, make)]
            except BadRecord as error:
                read.rejected[_brief(str(error))] += 1
                aside(place, "read", str(error), record)
                continue
            except SetAside as error:
                read.set_aside[_brief(str(error))] += 1
                aside(place, "set aside", str(error), record)
                continue
            if not made:
                reason = "no row: too little in common to be a correction"
                read.set_aside[reason] += 1
                aside(place, "set aside", reason, record)
            for example in made:
                reason_out = self._filter.reason(example)
                if reason_out:
                    read.filtered[reason_out] += 1
                    aside(place, "filter", reason_out, to_dict(example))
                elif self._new(example):
                    read.rows += 1
                    self._questions.add(
                        example.group, key_text(example.question), evaluation=evaluation
                    )
                    if isinstance(example, Row):
                        self._kinds[example.group, example.kept] += 1
                    spool(files.dump(example) + "\n")
                else:
                    read.duplicates += 1

    def _new(self, example: Example) -> bool:
        """Whether it is the first of its content, up to case, width and whitespace."""
        key = digest(example, normalised=True)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _bearable(self) -> None:
        records = sum(one.records for one in self._read.values())
        bad = sum(sum(one.rejected.values()) for one in self._read.values())
        if records and bad / records > self._config.max_rejected:
            reasons: Counter[str] = Counter()
            for one in self._read.values():
                reasons += one.rejected
            worst = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(3))
            raise DataError(
                f"{bad} of {records} records are bad, more than max_rejected "
                f"({self._config.max_rejected:g}) allows: {worst}"
            )
        if not any(one.rows for one in self._read.values()):
            raise DataError("no rows are left: see the reasons in the set-aside file")

    # -- the third pass -------------------------------------------------------------------------

    def _deal(self, splits: Splits) -> tuple[dict[Split, Tally], Tally, dict[str, list[str]]]:
        chance = self._keep_chance(splits)
        sizes: Counter[tuple[Split, Form]] = Counter()
        for example in _spooled(self._spool):
            if self._stays(example, splits, chance):
                sizes[splits.of[example.group], form(example)] += 1
        self._dropped = sum(one.rows for one in self._read.values()) - sum(sizes.values())
        rng = random.Random(self._config.seed)
        shards = {key: -(-size // self._config.shard_rows) for key, size in sizes.items()}
        tally, tallies = Tally(), {split: Tally() for split in SPLITS}
        parts = {
            (split, shape, at): (self._work / f"{split}-{shape}-{at}").open("w", encoding="utf-8")
            for (split, shape), count in shards.items()
            for at in range(count)
        }
        try:
            total = sum(one.rows for one in self._read.values())
            for example in progress(_spooled(self._spool), "dealing out", total):
                if self._stays(example, splits, chance):
                    split, shape = splits.of[example.group], form(example)
                    at = rng.randrange(shards[split, shape])
                    parts[split, shape, at].write(files.dump(example) + "\n")
                    for one in (tally, tallies[split]):
                        one.add(example, self._config.seed)
                    tally.judge(example)
        finally:
            for part in parts.values():
                part.close()
        written: dict[str, list[str]] = {}
        for (split, shape, at), part in parts.items():
            examples = list(_spooled(Path(part.name)))
            rng.shuffle(examples)
            name = f"{shape}/{split}-{at:05}-of-{shards[split, shape]:05}.{self._config.format}"
            files.write(self._made / name, examples)
            Path(part.name).unlink()
            written.setdefault(split, []).append(name)
        return tallies, tally, written

    def _keep_chance(self, splits: Splits) -> float:
        """The chance of a kept sentence of the training split to stay, so that kept ones are the
        share that is wanted. The other splits stay as they are: they measure."""
        share = self._config.keep_share
        kept = changed = 0
        for (group, is_kept), count in self._kinds.items():
            if splits.of[group] == "train":
                kept, changed = kept + is_kept * count, changed + (not is_kept) * count
        if share is None or not kept or not changed:
            return 1.0
        return min(1.0, changed * share / (1 - share) / kept)

    def _stays(self, example: Example, splits: Splits, chance: float) -> bool:
        if not isinstance(example, Row) or not example.kept or splits.of[example.group] != "train":
            return True
        # A hash of the row, not a draw: what else is in the set does not change who stays first.
        seed = self._config.seed.to_bytes(8, "big", signed=True)
        at = int.from_bytes(digest(example)[:8], "big") ^ int.from_bytes(seed, "big")
        return random.Random(at).random() < chance

    def _written(self) -> Iterator[tuple[Split, str, str]]:
        for path in sorted(self._made.rglob(f"*.{self._config.format}")):
            split = next((one for one in SPLITS if path.name.startswith(one)), None)
            if split is None:
                continue
            for place, example in files.rows(path):
                if isinstance(example, Trouble):
                    raise DataError(f"{place} was written and cannot be read: {example.reason}")
                yield split, example.group, key_text(example.question)

    def _report(
        self,
        tally: Tally,
        tallies: Mapping[Split, Tally],
        splits: Splits,
        written: Mapping[str, list[str]],
    ) -> dict[str, Any]:
        questions = Counter(splits.of.values())
        return {
            **tally.plain(),
            "read": {name: asdict(one) for name, one in self._read.items()},
            "kept_rows_dropped_for_balance": self._dropped,
            "splits": {
                split: {
                    "rows": one.rows,
                    "questions": questions[split],
                    "keep_share": keep_share(one),
                    "fingerprint": one.fingerprint,
                    "files": written.get(split, []),
                }
                for split, one in tallies.items()
            },
            "near_duplicate_questions": splits.joined,
            "config": asdict(self._config),
        }


def keep_share(tally: Tally) -> float:
    """Of the sentence rows, how many are kept ones."""
    sentences = {key: count for key, count in tally.kinds.items() if key[1] == "sentence"}
    kept = sum(count for key, count in sentences.items() if key[2] == "keep")
    return round(kept / sum(sentences.values()), 4) if sentences else 0.0


def _beside(path: str | None) -> Path | None:
    """The folder that the source's own folder lies in."""
    if path is None:
        return None
    at = Path(path).resolve()
    return at.parent.parent if at.is_file() else at.parent


def _found(told: SourceConfig) -> Iterator[files.Found]:
    source = source_named(told.name)
    count = 0
    if told.path is None:
        name = told.name if "/" in told.name else source.hub
        if name is None:
            raise DataError(f"{source.name} is not on the hub: give a path ({source.name}:PATH)")
        streams = [hub.stream(name, told.split or source.split)]
    else:
        streams = [files.records(path) for path in expand(Path(told.path), source.files)]
    for one in streams:
        for found in one:
            if told.limit is not None and count >= told.limit:
                return
            count += 1
            yield found


def _spooled(path: Path) -> Iterator[Example]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from_dict(json.loads(line))


def _text_only(example: Example) -> Example:
    """Half a surrogate pair is no text: no file could hold it, no tokenizer read it."""
    try:
        files.dump(example).encode()
    except UnicodeEncodeError:
        raise BadRecord("half a surrogate pair in a text") from None
    return example


def _brief(reason: str) -> str:
    """A reason to count under: what is the record's own is left out."""
    return reason if len(reason) < 80 else reason[:77] + "..."
