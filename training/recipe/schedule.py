"""Which examples each step sees: decided before anything runs, by the seed and the batch alone.

So a run has the same steps on one device and on many, and after a resume.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.recipe.config import Recipe, Stage
from training.recipe.rows import Encoded


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rows`: packed rows in order, each the examples in it; `optim.batch` of them make a step.
    `ends`: the step at which each stage is over."""

    rows: list[list[Encoded]]
    ends: tuple[int, ...]

    @property
    def steps(self) -> int:
        return self.ends[-1]


def pack(examples: Sequence[Encoded], length: int) -> list[list[Encoded]]:
    """Each example into the fullest open row that it fits, else a new one."""
    rows: list[list[Encoded]] = []
    room: list[tuple[int, int]] = []
    for example in examples:
        need = len(example.ids)
        at = next((i for i, (left, _) in enumerate(room) if left >= need), None)
        if at is None:
            rows.append([example])
            left, row = length - need, len(rows) - 1
        else:
            left, row = room.pop(at)
            rows[row].append(example)
            left -= need
        # Rows nearly full are never asked again, and the list of open ones stays short.
        if left >= 16:
            insort(room, (left, row))
            if len(room) > 256:
                room.pop(0)
    return rows


def schedule(recipe: Recipe, warm: Sequence[Encoded], correct: Sequence[Encoded]) -> Schedule:
    """Lay out both stages; the last step of each is filled up with rows from its beginning."""
    rows: list[list[Encoded]] = []
    ends: list[int] = []
    for name, stage, examples in (
        ("warm-up", recipe.warmup, warm),
        ("correction", recipe.correction, correct),
    ):
        mine = _stage(recipe, stage, examples, name) if examples else []
        short = -len(mine) % recipe.optim.batch
        mine += [mine[i % len(mine)] for i in range(short)]
        rows += mine
        ends.append(len(rows) // recipe.optim.batch)
    return Schedule(rows, tuple(ends))


def _stage(
    recipe: Recipe, stage: Stage, examples: Sequence[Encoded], name: str
) -> list[list[Encoded]]:
    rows: list[list[Encoded]] = []
    for epoch in range(stage.epochs):
        order = list(examples)
        rng = random.Random(f"{recipe.seed}/{name}/{epoch}")
        rng.shuffle(order)
        packed = pack(order, recipe.data.length) if recipe.data.pack else [[one] for one in order]
        rng.shuffle(packed)
        rows += packed
    return rows


def rate(recipe: Recipe, ends: Sequence[int]) -> Callable[[int], float]:
    """The learning rate of a step, over `correction.lr`: for each stage a rise and a cosine."""
    stages = (recipe.warmup, recipe.correction)

    def at(step: int) -> float:
        begin = 0
        for end, stage in zip(ends, stages, strict=True):
            if step < end:
                steps, done = end - begin, step - begin
                rise = math.ceil(stage.lr_warmup * steps)
                scale = stage.lr / recipe.correction.lr
                if done < rise:
                    return scale * (done + 1) / rise
                return scale * 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, steps - rise)))
            begin = end
        return 0.0

    return at
