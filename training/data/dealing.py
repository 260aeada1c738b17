"""The last pass: balance, deal the rows out to shards at random, shuffle each shard, write it.

The spool is read twice, and one shard at a time is in memory.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from training.data.config import BuildConfig
from training.data.files import DataError
from training.data.intake import progress
from training.data.rows import Example, Form, Row, digest, form, from_dict
from training.data.split import SPLITS, Split
from training.data.tally import Tally
from training.data.writing import dump, write

_MOST_SHARDS: Final = 500  # files open at once


@dataclass(slots=True)
class Dealt:
    """What was written: counts of all and of each split, and the files by split."""

    all: Tally = field(default_factory=Tally)
    splits: dict[Split, Tally] = field(default_factory=lambda: {one: Tally() for one in SPLITS})
    files: dict[Split, list[str]] = field(default_factory=lambda: {one: [] for one in SPLITS})


def keep_chance(
    kinds: Mapping[tuple[str, bool], int], of: Mapping[str, Split], share: float | None
) -> float:
    """The chance of a kept sentence of the training split to stay, so that kept ones are the share
    that is wanted. The other splits stay as they are: they measure."""
    kept = changed = 0
    for (group, is_kept), count in kinds.items():
        if of[group] == "train":
            kept, changed = kept + is_kept * count, changed + (not is_kept) * count
    if share is None or not kept or not changed:
        return 1.0
    return min(1.0, changed * share / (1 - share) / kept)


class Dealer:
    """Deals a spool out into `out/SPLIT/FORM-00000-of-00001.jsonl`; `work` is for its own use."""

    def __init__(
        self, config: BuildConfig, of: Mapping[str, Split], chance: float, work: Path
    ) -> None:
        self._config, self._of, self._chance, self._work = config, of, chance, work

    def deal(self, spool: Path, total: int, out: Path) -> Dealt:
        """Write the shards. Raises `DataError`."""
        rng, dealt = random.Random(self._config.seed), Dealt()
        shards = self._shards(spool)
        names = {
            (split, shape, at): self._work / f"{split}-{shape}-{at}"
            for (split, shape), count in shards.items()
            for at in range(count)
        }
        with ExitStack() as stack:
            parts = {
                key: stack.enter_context(name.open("w", encoding="utf-8"))
                for key, name in names.items()
            }
            for example in progress(self._staying(spool), "dealing out", total):
                split, shape = self._of[example.group], form(example)
                parts[split, shape, rng.randrange(shards[split, shape])].write(dump(example) + "\n")
                for tally in (dealt.all, dealt.splits[split]):
                    tally.add(example, self._config.seed)
                dealt.all.judge(example)
        for (split, shape, at), name in names.items():
            examples = list(spooled(name))
            rng.shuffle(examples)
            count = shards[split, shape]
            file = f"{split}/{shape}-{at:05}-of-{count:05}.{self._config.format}"
            write(out / file, examples)
            name.unlink()
            dealt.files[split].append(file)
        return dealt

    def _shards(self, spool: Path) -> dict[tuple[Split, Form], int]:
        sizes: Counter[tuple[Split, Form]] = Counter()
        for example in self._staying(spool):
            sizes[self._of[example.group], form(example)] += 1
        shards = {key: -(-size // self._config.shard_rows) for key, size in sorted(sizes.items())}
        if (count := sum(shards.values())) > _MOST_SHARDS:
            raise DataError(
                f"shard_rows ({self._config.shard_rows}) would make {count} files, more than "
                f"{_MOST_SHARDS}: raise it"
            )
        return shards

    def _staying(self, spool: Path) -> Iterator[Example]:
        return (example for example in spooled(spool) if self._stays(example))

    def _stays(self, example: Example) -> bool:
        kept = isinstance(example, Row) and example.kept and self._of[example.group] == "train"
        if not kept or self._chance >= 1:
            return True
        # A hash of the row, not a draw: what else is in the set does not change who stays first.
        seed = str(self._config.seed).encode()
        drawn = hashlib.blake2b(digest(example) + seed, digest_size=8).digest()
        return int.from_bytes(drawn, "big") < self._chance * 2**64


def spooled(path: Path) -> Iterator[Example]:
    """The rows of a file that was written here."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from_dict(json.loads(line))
