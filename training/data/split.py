"""Which questions are trained on: whole groups, near-duplicates together, checked afterwards.

Questions that share most of their word triples are joined (MinHash finds candidates, the triples
themselves decide), a hash of the joined group's smallest name gives the split. So the split of a
question does not depend on the order of reading, and adding questions moves none but those that
turn out to be near to a new one. A group of which any question is for evaluation only goes to the
test split as a whole.

Memory: about a kilobyte per distinct question.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from training.data.config import SplitConfig
from training.data.files import DataError
from training.data.rows import words

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

_PRIME: Final = (1 << 61) - 1
_BANDS: Final = 16
_ROWS: Final = 4  # with 16 bands: 0.8 alike is found in 99.98 of 100 cases, 0.3 in 12
_MAX_TRIPLES: Final = 400  # of a question; the rest of a long one adds nothing
_FACTORS: Final = [
    (
        int.from_bytes(hashlib.sha256(b"a%d" % i).digest()[:7], "big") | 1,
        int.from_bytes(hashlib.sha256(b"b%d" % i).digest()[:7], "big"),
    )
    for i in range(_BANDS * _ROWS)
]


class Leak(DataError):
    """A question stands in two splits."""


def triples(text: str) -> frozenset[int]:
    """Hashes of the word triples; of a shorter text, of all its words."""
    found = words(text)[: _MAX_TRIPLES + 2]
    size = min(3, len(found))
    if not size:
        return frozenset((zlib.crc32(text.encode("utf-8", "surrogatepass")),))
    return frozenset(
        zlib.crc32(" ".join(found[i : i + size]).encode("utf-8", "surrogatepass"))
        for i in range(len(found) - size + 1)
    )


def _bands(grams: frozenset[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    for band in range(_BANDS):
        factors = _FACTORS[band * _ROWS : (band + 1) * _ROWS]
        yield band, tuple(min((a * gram + b) % _PRIME for gram in grams) for a, b in factors)


def _alike(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b)


def near_pairs(texts: Mapping[str, frozenset[int]], near: float) -> Iterator[tuple[str, str]]:
    """Pairs of names whose texts are at least `near` alike; of many alike ones, enough pairs to
    join them all."""
    seen: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, grams in texts.items():
        tried: set[str] = set()
        for bucket in _bands(grams):
            others = seen.setdefault(bucket, [])
            for other in others:
                if other not in tried:
                    tried.add(other)
                    if _alike(grams, texts[other]) >= near:
                        yield name, other
            # A bucket of hundreds holds one form with other numbers: a few stand for it.
            if len(others) < 32:
                others.append(name)


@dataclass(frozen=True, slots=True)
class Splits:
    """The split of every group; `joined`: groups that went with a near-duplicate."""

    of: Mapping[str, Split]
    joined: int
    groups: int


class Questions:
    """Collects the questions, then splits them."""

    def __init__(self) -> None:
        self._grams: dict[str, frozenset[int]] = {}
        self._evaluation: set[str] = set()

    def add(self, group: str, text: str, *, evaluation: bool = False) -> None:
        if group not in self._grams:
            self._grams[group] = triples(text or group)
        if evaluation:
            self._evaluation.add(group)

    def split(self, config: SplitConfig) -> Splits:
        """The split of each group."""
        parent = {group: group for group in self._grams}

        def root(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        joined = 0
        for a, b in near_pairs(self._grams, config.near):
            one, other = root(a), root(b)
            if one != other:
                joined += 1
                parent[max(one, other)] = min(one, other)
        held = {root(group) for group in self._evaluation}
        of = {
            group: "test" if root(group) in held else _drawn(root(group), config)
            for group in self._grams
        }
        splits = Splits(of, joined, len(parent) - joined)
        self.check(splits.of, config.near)
        return splits

    def check(self, of: Mapping[str, Split], near: float) -> None:
        """Raises `Leak` where a question, or one nearly the same, stands in two splits."""
        for a, b in near_pairs(self._grams, near):
            if of[a] != of[b]:
                raise Leak(f"questions {a} ({of[a]}) and {b} ({of[b]}) are nearly the same")


def _drawn(name: str, config: SplitConfig) -> Split:
    at = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if at < config.test:
        return "test"
    return "validation" if at < config.test + config.validation else "train"


def check_splits(found: Iterable[tuple[Split, str, str]], near: float) -> None:
    """The leakage check over (split, group, question) of rows that are split already: the same
    group, the same words, or nearly the same. Raises `Leak`."""
    of: dict[str, Split] = {}
    questions = Questions()
    said: dict[str, tuple[str, Split]] = {}
    for split, group, text in found:
        if of.setdefault(group, split) != split:
            raise Leak(f"question {group} stands in {of[group]} and in {split}")
        plain = " ".join(words(text)) or text or group
        other, where = said.setdefault(plain, (group, split))
        if where != split and other != group:
            raise Leak(f"questions {other} ({where}) and {group} ({split}) have the same words")
        questions.add(group, text)
    questions.check(of, near)
