"""Which questions are trained on: whole groups, near-duplicates together, checked afterwards.

Questions that share most of their word triples are joined (`near`), and so are groups in which the
same question stands. A hash of the joined groups' smallest name gives the split. So the split of a
question does not depend on the order of reading, and adding questions moves none but those that
turn out to be near to a new one. A group of which any question is for evaluation only goes to the
test split, and so does what is joined with it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from training.data.config import SplitConfig
from training.data.files import DataError
from training.data.near import Near
from training.data.rows import words

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")


class Leak(DataError):
    """A question stands in two splits."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The split of every group. `joined`: groups that went with another; `largest`: groups in the
    largest family of joined ones."""

    of: Mapping[str, Split]
    joined: int
    largest: int


class Questions:
    """Collects the questions of all groups, then splits the groups, or checks a split."""

    def __init__(self) -> None:
        self._groups: dict[str, int] = {}
        self._evaluation: set[int] = set()
        self._near = Near()
        self._group_of = array("L")  # by the text's number
        self._texts: dict[bytes, int] = {}  # what a question says, and the group it was seen in
        self._same: set[tuple[int, int]] = set()  # groups that have a question in common

    def add(self, group: str, text: str, *, evaluation: bool = False) -> None:
        """Take a question of a group; one without a text is its group and nothing more."""
        at = self._groups.setdefault(group, len(self._groups))
        if evaluation:
            self._evaluation.add(at)
        said = " ".join(words(text)) or text or group
        key = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        known = self._texts.get(key)
        if known is None:
            self._texts[key] = at
            self._near.add(text or group)
            self._group_of.append(at)
        elif known != at:
            self._same.add((known, at))

    def split(self, config: SplitConfig) -> Splits:
        """The split of each group."""
        parent = list(range(len(self._groups)))
        names = list(self._groups)

        def root(at: int) -> int:
            while parent[at] != at:
                parent[at] = parent[parent[at]]
                at = parent[at]
            return at

        def join(a: int, b: int) -> None:
            # The smallest name is the root, whatever the order.
            one, other = sorted((root(a), root(b)), key=names.__getitem__)
            parent[other] = one

        def joined(a: int, b: int) -> bool:
            return root(self._group_of[a]) == root(self._group_of[b])

        for a, b in self._same:
            join(a, b)
        for a, b in self._near.pairs(config.near, skip=joined):
            join(self._group_of[a], self._group_of[b])
        roots = [root(at) for at in range(len(names))]
        held = {roots[at] for at in self._evaluation}
        of = {
            name: "test" if roots[at] in held else _drawn(names[roots[at]], config)
            for at, name in enumerate(names)
        }
        families = Counter(roots)
        return Splits(of, len(names) - len(families), max(families.values(), default=0))

    def check(self, of: Mapping[str, Split], near: float) -> None:
        """Raises `Leak` where a question, or one nearly the same, stands in two splits."""
        names = list(self._groups)
        splits = [of[name] for name in names]

        def apart(a: int, b: int, how: str) -> Leak:
            return Leak(
                f"questions {names[a]} ({splits[a]}) and {names[b]} ({splits[b]}) {how}: "
                "train on neither, or split again with a lower `near`"
            )

        for a, b in self._same:
            if splits[a] != splits[b]:
                raise apart(a, b, "have the same words")
        group = self._group_of
        together = lambda a, b: splits[group[a]] == splits[group[b]]  # noqa: E731
        for a, b in self._near.pairs(near, skip=together):
            raise apart(group[a], group[b], "are nearly the same")


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
    for split, group, text in found:
        if of.setdefault(group, split) != split:
            raise Leak(f"question {group} stands in {of[group]} and in {split}")
        questions.add(group, text)
    questions.check(of, near)
