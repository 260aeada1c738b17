"""The first pass: read each source, make rows, filter them, drop duplicates, spool what is left."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from training.data import files, hub
from training.data.config import BuildConfig, SourceConfig
from training.data.files import DataError, Torn, Trouble, expand
from training.data.filters import Filter
from training.data.make import Maker
from training.data.rows import (
    BadRecord,
    Example,
    Row,
    SetAside,
    digest,
    form,
    key_text,
    sound,
    to_dict,
)
from training.data.sources.registry import source as source_named
from training.data.sources.source import Source
from training.data.split import Questions
from training.data.writing import dump

T = TypeVar("T")
Write = Callable[[str], Any]

_UNLIKE = "too little in common to be a correction"
_NOTHING = f"no row: {_UNLIKE}"
_OTHER_FORM = "a form that was not asked for"


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """A progress bar on a terminal, nothing otherwise."""
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, unit=" rows", disable=not sys.stderr.isatty(), leave=False
    )
    return bar


@dataclass(slots=True)
class Read:
    """What became of one source's records. `rejected` and `set_aside` count records, `filtered`
    and `duplicates` rows."""

    records: int = 0
    rows: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    set_aside: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: dict(value.most_common()) if isinstance(value, Counter) else value
            for name, value in values.items()
        }


class Intake:
    """Takes sources in, one after the other.

    `kinds` counts the spooled sentence rows by group and whether they are kept.
    """

    def __init__(self, config: BuildConfig, spool: Write, reject: Write) -> None:
        self._config = config
        self._spool, self._reject = spool, reject
        self._seen: set[bytes] = set()
        self._filter = Filter(config.filters)
        self.read: dict[str, Read] = {}
        self.questions = Questions()
        self.kinds: Counter[tuple[str, bool]] = Counter()

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.read.values())

    def take(self, told: SourceConfig) -> None:
        """Read a source to its end. Raises `DataError` where it cannot be read at all."""
        source = source_named(told.name)
        read = self.read.setdefault(source.name, Read())
        make = Maker(
            source.name,
            source.similarity if told.similarity is None else told.similarity,
            self._config.code,
            told.whole,
            _beside(told.path),
        )
        evaluation = source.evaluation if told.evaluation is None else told.evaluation
        for place, record in progress(_found(source, told, self._config.seed), source.name):
            read.records += 1
            reason, counted = "", read.rejected
            made: list[Example] = []
            if isinstance(record, Trouble):
                reason = record.reason
                if source.grows and isinstance(record, Torn):
                    counted = read.set_aside
            else:
                try:
                    made = [sound(example) for example in source.read(record, make)]
                except BadRecord as error:
                    reason = str(error)
                except SetAside as error:
                    reason, counted = str(error), read.set_aside
                else:
                    if not made:
                        reason, counted = _NOTHING, read.set_aside
            if reason:
                counted[_brief(reason)] += 1
                stage = "read" if counted is read.rejected else "set aside"
                self._aside(source, place, stage, reason, record)
                make.left_out.clear()
            for last, correction in make.left_out:
                read.filtered[_UNLIKE] += 1
                pair = {"last": last, "correction": correction}
                self._aside(source, place, "filter", _UNLIKE, pair)
            make.left_out.clear()
            for example in made:
                self._example(source, read, place, example, evaluation)

    def _example(
        self, source: Source, read: Read, place: str, example: Example, evaluation: bool
    ) -> None:
        if self._config.form not in ("both", form(example)):
            read.filtered[_OTHER_FORM] += 1
        elif reason := self._filter.reason(example):
            read.filtered[reason] += 1
            self._aside(source, place, "filter", reason, to_dict(example))
        elif self._new(example):
            read.rows += 1
            self.questions.add(example.group, key_text(example.question), evaluation=evaluation)
            if isinstance(example, Row):
                self.kinds[example.group, example.kept] += 1
            self._spool(dump(example) + "\n")
        else:
            read.duplicates += 1

    def _new(self, example: Example) -> bool:
        """Whether it is the first of its content, up to case, width and whitespace."""
        key = digest(example, normalised=True)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _aside(self, source: Source, place: str, stage: str, reason: str, what: Any) -> None:
        entry = {"source": source.name, "at": place, "stage": stage, "reason": reason}
        if not isinstance(what, Trouble):
            entry["row"] = what
        self._reject(json.dumps(entry, ensure_ascii=False, default=str) + "\n")

    def bearable(self) -> None:
        """Raises `DataError` where too many records are bad, or nothing is left."""
        records = sum(one.records for one in self.read.values())
        reasons: Counter[str] = Counter()
        for one in self.read.values():
            reasons += one.rejected
        bad = reasons.total()
        if records and bad / records > self._config.max_rejected:
            worst = "; ".join(f"{why} ({count})" for why, count in reasons.most_common(3))
            raise DataError(
                f"{bad} of {records} records are bad, more than max_rejected "
                f"({self._config.max_rejected:g}) allows: {worst}"
            )
        if not self.rows:
            raise DataError("no rows are left: see the reasons in the set-aside file")


def _beside(path: str | None) -> Path | None:
    """The folder that the source's own folder lies in."""
    if path is None:
        return None
    at = Path(path).resolve()
    return at.parent.parent if at.is_file() else at.parent


def _found(source: Source, told: SourceConfig, seed: int) -> Iterator[files.Found]:
    if told.path is not None:
        paths = expand(Path(told.path), source.files)
        found: Iterator[files.Found] = (one for path in paths for one in files.records(path))
    elif source.generate is not None:
        return islice(source.generate(seed), told.limit or source.number)
    else:
        name = told.name if "/" in told.name else source.hub
        if name is None:
            raise DataError(f"{source.name} is not on the hub: give a path ({source.name}:PATH)")
        found = hub.stream(name, told.split or source.split)
    return islice(found, told.limit)


def _brief(reason: str) -> str:
    """A reason to count under, cut to a bearable length."""
    return reason if len(reason) < 80 else reason[:77] + "..."
