"""Counts of a build and of a set of rows: what the report is made from.

Histograms have fixed edges, so that nothing grows with the number of rows.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from training.data.rows import Example, Row, before, digest, edit_share, form, label, to_dict

LENGTHS: Final = (0, 10, 20, 40, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 2560, 5120, 10240)
SHARES: Final = tuple(i / 20 for i in range(21))
_SAMPLES: Final = 3  # of each kind


def fingerprint_of(total: int) -> str:
    """The fingerprint of rows whose digests add up to this."""
    return f"{total % (1 << 256):064x}"


def digest_number(example: Example) -> int:
    """One row's part of the fingerprint: everything in it counts, its place does not."""
    text = json.dumps(to_dict(example), ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


@dataclass(slots=True)
class Histogram:
    """Counts between fixed edges; the last bin is open."""

    edges: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * len(self.edges)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_right(self.edges, value) - 1] += 1
        self.total += value

    @property
    def mean(self) -> float:
        count = sum(self.counts)
        return self.total / count if count else 0.0

    def plain(self) -> dict[str, Any]:
        return {"edges": list(self.edges), "counts": self.counts, "mean": round(self.mean, 4)}


@dataclass(slots=True)
class Tally:
    """What a set of rows holds.

    `fingerprint` is a hash of the content that does not depend on the order: the sum of the rows'
    SHA-256, modulo 2^256, so that a row more or fewer, a second copy too, changes it.
    """

    kinds: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # source, form, kind
    ends: int = 0
    lengths: dict[str, Histogram] = field(default_factory=dict)
    edits: Histogram = field(default_factory=lambda: Histogram(SHARES))
    samples: dict[str, list[tuple[int, Example]]] = field(default_factory=dict)
    total: int = 0
    rows: int = 0
    contradictions: int = 0
    _verdicts: dict[bytes, bool] = field(default_factory=dict)

    def add(self, example: Example, seed: int = 0) -> None:
        kind = label(example)
        self.rows += 1
        self.kinds[example.source, form(example), kind] += 1
        self.total += digest_number(example)
        self.ends += isinstance(example, Row) and example.end
        parts = {"question": sum(len(turn.text) for turn in example.question)}
        if isinstance(example, Row):
            parts |= {"prefix": len(example.prefix), "sentence": len(example.last)}
        else:
            parts["answer"] = len(example.answer)
        for name, size in parts.items():
            self.lengths.setdefault(name, Histogram(LENGTHS)).add(size)
        if isinstance(example, Row) and kind in ("fix", "merge"):
            self.edits.add(edit_share(example.last, example.correction))
        self._sample(example, kind, seed)

    def judge(self, example: Example) -> None:
        """Count reviews that another row of the same place answers the other way (keep, change)."""
        # Inputs alone: the verdict is what is compared.
        place = digest(_without_answer(example))
        known = self._verdicts.setdefault(place, example.kept)
        self.contradictions += known != example.kept

    def _sample(self, example: Example, kind: str, seed: int) -> None:
        """Keep the few rows of each kind that a hash prefers: as good as drawn, and the same on
        every run."""
        name = kind if isinstance(example, Row) else f"whole {kind}"
        kept = self.samples.setdefault(name, [])
        rank = random.Random(f"{seed} {digest(example).hex()}").getrandbits(32)
        if len(kept) < _SAMPLES or rank < kept[-1][0]:
            kept.append((rank, example))
            kept.sort(key=lambda one: one[0])
            del kept[_SAMPLES:]

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.total)

    def plain(self) -> dict[str, Any]:
        sources: dict[str, dict[str, dict[str, int]]] = {}
        for (source, shape, kind), count in sorted(self.kinds.items()):
            sources.setdefault(source, {}).setdefault(shape, {})[kind] = count
        return {
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "sources": sources,
            "ends": self.ends,
            "contradictions": self.contradictions,
            "lengths": {name: one.plain() for name, one in self.lengths.items()},
            "edit_shares": self.edits.plain(),
            "samples": {
                name: [to_dict(example) for _, example in kept]
                for name, kept in sorted(self.samples.items())
            },
        }


def _without_answer(example: Example) -> Example:
    if isinstance(example, Row):
        return Row(example.question, example.prefix, before(example), "", False, "delete", "", "")
    return type(example)(example.question, before(example), "", "", "")
