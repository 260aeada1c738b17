"""Which texts are nearly the same: MinHash finds candidates, their word triples decide.

Memory: about 700 bytes a text and 4 a word. Which pairs are looked at does not depend on the order
of adding.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.rows import words

Grams = NDArray[np.uint32]

_BANDS: Final = 16
_ROWS: Final = 4  # with 16 bands: 0.8 alike is found in 99.98 of 100 cases, 0.3 in 12
_MAX_TRIPLES: Final = 400  # of a text; the rest of a long one adds nothing
# Texts of a bucket that each other one is compared with. A bucket of hundreds holds one form with
# other names or numbers: these stand for it.
_STAND_FOR: Final = 128
# How far the share of equal hashes may be below what the triples say: four standard deviations.
_SLACK: Final = 0.2


def _numbers(name: str) -> NDArray[np.uint64]:
    digests = (hashlib.sha256(f"{name}{i}".encode()).digest() for i in range(_BANDS * _ROWS))
    return np.array([int.from_bytes(one[:8], "big") for one in digests], dtype=np.uint64)


_FACTORS: Final = _numbers("factor") | np.uint64(1)
_OFFSETS: Final = _numbers("offset")


def triples(text: str) -> Grams:
    """Hashes of the word triples, sorted; of a shorter text, of all its words."""
    found = words(text)[: _MAX_TRIPLES + 2] or [text]
    size = min(3, len(found))
    parts = (" ".join(found[i : i + size]) for i in range(len(found) - size + 1))
    hashes = {zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in parts}
    return np.array(sorted(hashes), dtype=np.uint32)


def alike(a: Grams, b: Grams) -> float:
    """Jaccard's index: what the two have in common, of all they have."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class Near:
    """Collects texts, then tells the pairs that are nearly the same."""

    def __init__(self) -> None:
        self._grams: list[Grams] = []
        self._least: list[NDArray[np.uint32]] = []

    def __len__(self) -> int:
        return len(self._grams)

    def add(self, text: str) -> int:
        """Take a text; return its number."""
        grams = triples(text)
        hashed = _FACTORS[:, None] * grams.astype(np.uint64) + _OFFSETS[:, None]
        self._grams.append(grams)
        self._least.append((hashed >> np.uint64(32)).min(axis=1).astype(np.uint32))
        return len(self._grams) - 1

    def pairs(
        self, near: float, skip: Callable[[int, int], bool] = lambda _a, _b: False
    ) -> Iterator[tuple[int, int]]:
        """Pairs of numbers whose texts are at least `near` alike; of many alike ones, enough pairs
        to join them all. Those of which `skip` says so are not looked at."""
        if not self._grams:
            return
        least = np.stack(self._least)
        order = np.lexsort(least.T)
        for band in range(_BANDS):
            part = least[:, band * _ROWS : (band + 1) * _ROWS][order]
            # Sorted by the band; the order within a bucket is the texts' own.
            by_band = np.lexsort(part.T)
            changes = np.any(np.diff(part[by_band], axis=0), axis=1)
            starts = [0, *(np.flatnonzero(changes) + 1), len(order)]
            for start, stop in pairwise(starts):
                if stop - start > 1:
                    yield from self._within(least, order[by_band[start:stop]], near, skip)

    def _within(
        self,
        least: NDArray[np.uint32],
        bucket: NDArray[np.intp],
        near: float,
        skip: Callable[[int, int], bool],
    ) -> Iterator[tuple[int, int]]:
        for at in range(1, len(bucket)):
            one, others = int(bucket[at]), bucket[: min(at, _STAND_FOR)]
            share = (least[others] == least[one]).mean(axis=1)
            for other in others[share >= near - _SLACK].tolist():
                if not skip(one, other) and alike(self._grams[one], self._grams[other]) >= near:
                    yield one, other
