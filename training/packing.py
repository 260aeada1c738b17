"""Several examples in one row of tokens, none of which sees another.

An example is a trunk (plain text, causal) and any number of branches. A branch sees the first
`sees` tokens of its trunk and itself: all reviews of one reply share the question and the committed
text instead of repeating them. Positions restart with each example, and a branch goes on from the
trunk tokens it sees, so every branch computes exactly what it would alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

import torch

IGNORE = -100


@dataclass(slots=True)
class Example:
    """Token ids, and how much learning to predict each one counts. `branch` 0 is the trunk.

    For deep supervision (`engine.Deep`): `known` is the token that should stand in each place,
    `faults` is 1 where the token that does is the first wrong one and 0 where it is right. Both are
    `IGNORE` where nothing is said.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    sees: list[int] = field(default_factory=list)

    def add(
        self,
        ids: list[int],
        weight: float,
        *,
        branch: int = 0,
        sees: int = 0,
        known: list[int] | None = None,
        faults: list[int] | None = None,
    ) -> None:
        """Append tokens to a branch; `weight` 0 means that they are not to be learnt."""
        mine = [p for p, b in zip(self.positions, self.branch, strict=True) if b == branch]
        start = mine[-1] + 1 if mine else sees
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.known += known or [IGNORE] * len(ids)
        self.faults += faults or [IGNORE] * len(ids)
        self.positions += range(start, start + len(ids))
        self.branch += [branch] * len(ids)
        self.sees += [sees] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one step; `mask` is (rows, 1, length, length), True where attention may look."""

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    known: torch.Tensor
    faults: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def collate(rows: list[list[Example]], length: int, pad: int) -> Batch:
    """Lay out packed rows as tensors.

    Labels are shifted: label[t] is what token t must predict, known[t] likewise; faults are not.
    """
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    labels, weights = torch.full(shape, IGNORE), torch.zeros(shape)
    known, faults = torch.full(shape, IGNORE), torch.full(shape, IGNORE)
    positions, doc = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    branch, sees = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for r, row in enumerate(rows):
        at = 0
        for d, example in enumerate(row):
            span = slice(at, at + len(example))
            ids[r, span] = torch.tensor(example.ids)
            positions[r, span] = torch.tensor(example.positions)
            doc[r, span] = d
            branch[r, span] = torch.tensor(example.branch)
            sees[r, span] = torch.tensor(example.sees)
            # A token predicts the next one of its own branch only.
            within = [a == b for a, b in zip(example.branch, example.branch[1:], strict=False)]
            worth = [w * s for w, s in zip(example.weights[1:], within, strict=True)]
            nexts = [y if w else IGNORE for y, w in zip(example.ids[1:], worth, strict=True)]
            labels[r, at : at + len(example) - 1] = torch.tensor(nexts)
            weights[r, at : at + len(example) - 1] = torch.tensor(worth)
            due = [k if s else IGNORE for k, s in zip(example.known[1:], within, strict=True)]
            known[r, at : at + len(example) - 1] = torch.tensor(due)
            faults[r, span] = torch.tensor(example.faults)
            at += len(example)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_doc = doc[:, :, None] == doc[:, None, :]
    same_branch = branch[:, :, None] == branch[:, None, :]
    trunk = (branch[:, None, :] == 0) & (positions[:, None, :] < sees[:, :, None])
    mask = causal & same_doc & (same_branch | trunk)
    return Batch(ids, labels, weights, known, faults, positions, mask[:, None])


def pack(examples: Iterable[Example], rows: int, length: int, pad: int) -> Iterator[Batch]:
    """Fill batches of `rows` x `length` tokens, each example into the fullest row it fits.

    Examples longer than a row are left out.
    """
    open_rows: list[list[Example]] = [[] for _ in range(rows)]
    room = [length] * rows
    misses = 0
    for example in examples:
        if len(example) > length:
            continue
        fits = [r for r in range(rows) if room[r] >= len(example)]
        if fits:
            best = min(fits, key=room.__getitem__)
            open_rows[best].append(example)
            room[best] -= len(example)
            misses = 0
            continue
        misses += 1
        # One try more per row finds a short example for most gaps.
        if misses >= 4:
            yield collate(open_rows, length, pad)
            open_rows, room, misses = [[] for _ in range(rows)], [length] * rows, 0
            open_rows[0].append(example)
            room[0] -= len(example)
