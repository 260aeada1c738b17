"""From answers to numbers: counts, shares with their intervals, and calibration. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stream_aligner_proxy.core.edits import edit_distance

BINS = 10
_Z = 1.96  # 95 %


@dataclass(frozen=True, slots=True)
class Judged:
    """One row: what it was, what should come, what came. `got` is None where the output was no
    verdict. `keep`: the sentence should be left alone; `keep_chance`: how likely that was."""

    source: str
    sentence: str
    expected: str
    got: str | None
    keep: bool
    ends: bool
    got_end: bool
    keep_chance: float

    @property
    def left_alone(self) -> bool:
        return self.got == self.sentence and not self.got_end

    @property
    def exact(self) -> bool:
        return self.got == self.expected and self.got_end == self.ends


@dataclass(frozen=True, slots=True)
class Share:
    """`part` of `whole`, with Wilson's interval of 95 %; NaN where there was nothing."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.whole:
            return (math.nan, math.nan)
        p, n = self.value, self.whole
        middle = p + _Z * _Z / (2 * n)
        spread = _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
        scale = 1 + _Z * _Z / n
        return (max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose keep chance lies in one tenth: how many, their mean chance, how many were keep."""

    count: int
    chance: float
    kept: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one set of rows.

    `keep_precision`: of what was left alone, what should be. `keep_recall`: of what should be left
    alone, what was. `over_correction`: of the same, what was changed. `found`: of what should be
    changed, what was. `fixed`: of the same, what became exactly what it should. `likeness` (0 to
    1): mean Levenshtein ratio of outputs to corrections over the rows to be changed;
    `likeness_before`, that of the sentences as they were. `calibration_error`: the mean gap between
    the chance of
    keeping and how often keeping was right, weighed by the bins' counts; `brier`: mean squared gap.
    """

    rows: int
    keep_precision: Share
    keep_recall: Share
    over_correction: Share
    found: Share
    fixed: Share
    exact: Share
    unreadable: Share
    likeness: float
    likeness_before: float
    calibration_error: float
    brier: float
    bins: Sequence[Bin] = field(default_factory=tuple)


def likeness(a: str, b: str) -> float:
    """1 for equal texts, 0 for nothing in common."""
    longest = max(len(a), len(b))
    return 1 - edit_distance(a, b, longest) / longest if longest else 1.0


def score(rows: Sequence[Judged]) -> Scores:
    keep = [row for row in rows if row.keep]
    change = [row for row in rows if not row.keep]
    alone = [row for row in rows if row.left_alone]
    bins = _bins(rows)
    gap = sum(abs(b.count * b.chance - b.kept) for b in bins)
    counted = sum(b.count for b in bins)
    return Scores(
        rows=len(rows),
        keep_precision=_share(alone, lambda row: row.keep),
        keep_recall=_share(keep, lambda row: row.left_alone),
        over_correction=_share(keep, lambda row: not row.left_alone),
        found=_share(change, lambda row: not row.left_alone),
        fixed=_share(change, lambda row: row.exact),
        exact=_share(rows, lambda row: row.exact),
        unreadable=_share(rows, lambda row: row.got is None),
        likeness=_mean(likeness(row.got or "", row.expected) for row in change),
        likeness_before=_mean(likeness(row.sentence, row.expected) for row in change),
        calibration_error=gap / counted if counted else math.nan,
        brier=_mean((row.keep_chance - row.keep) ** 2 for row in rows),
        bins=bins,
    )


def by_source(rows: Sequence[Judged]) -> dict[str, Scores]:
    """Each source's own, by name; rows are kept in their order."""
    names = sorted({row.source for row in rows})
    return {name: score([row for row in rows if row.source == name]) for name in names}


def _bins(rows: Sequence[Judged]) -> list[Bin]:
    sorted_in: list[list[Judged]] = [[] for _ in range(BINS)]
    for row in rows:
        if math.isnan(row.keep_chance):
            continue  # nobody asked for it
        sorted_in[min(BINS - 1, int(row.keep_chance * BINS))].append(row)
    return [
        Bin(len(some), _mean(row.keep_chance for row in some), sum(row.keep for row in some))
        if some
        else Bin(0, 0.0, 0)
        for some in sorted_in
    ]


def _share(rows: Sequence[Judged], holds: Callable[[Judged], bool]) -> Share:
    return Share(sum(map(holds, rows)), len(rows))


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else math.nan
