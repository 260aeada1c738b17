"""The runs that are compared. Each differs from `base`, or from its start, in one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from training.corrections import Mix
from training.demo_aligner import MIX
from training.engine import Shape
from training.loops import LoopMode

Rows = Literal["made", "half", "own"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One run.

    `says`: what differs. `rows`: mistakes made by rule, the upstream's own, or half of each.
    `mode`: how the aligner is asked in the loop. `start`: the variant whose model this goes on
    from, for `share` of its number of rows; else the demo's upstream, or, with `shape`, a base of
    that shape that is trained first. `prefer`: DPO on pairs from the rows of `start` instead of
    training on rows.
    """

    name: str
    says: str
    mix: Mix = MIX
    settings: Sequence[str] = field(default_factory=tuple)
    mode: LoopMode = "stream"
    profile: str = "compact"
    rows: Rows = "made"
    seed: int = 1
    start: str | None = None
    share: float = 1.0
    prefer: bool = False
    shape: Shape | None = None


# A later round: no warm-up, and a third of the rate.
_ROUND = ("warmup.rows=0", "correction.lr=5e-4")


def _size(name: str, says: str, shape: Shape, lr: float) -> Variant:
    return Variant(name, says, settings=(f"correction.lr={lr}",), shape=shape, share=0.5)


BASE = Variant(
    "base", "500 warm-up rows, 45 % of the sentences wrong, sentence by sentence, compact"
)
CHOICES = (
    BASE,
    Variant(
        "other-seed", "the same with other rows in another order", settings=("seed=2",), seed=2
    ),
    Variant("no-warm-up", "no identity warm-up", settings=("warmup.rows=0",)),
    Variant("long-warm-up", "2,000 warm-up rows", settings=("warmup.rows=2000",)),
    Variant("few-wrong", "20 % of the sentences wrong", mix=replace(MIX, wrong=0.2)),
    Variant("many-wrong", "75 % of the sentences wrong", mix=replace(MIX, wrong=0.75)),
    Variant(
        "published-profile",
        "the published prompt as plain text",
        settings=("model.profile=stream-aligner-plain",),
        profile="stream-aligner-plain",
    ),
    Variant(
        "whole-answers",
        "whole answers instead of sentences",
        mix=replace(MIX, whole=1),
        mode="whole",
    ),
    Variant("half-own", "half of the rows are the upstream's own sentences", rows="half"),
)
# As many tokens each, of a base and of half as many rows: twenty million parameters are slow here.
SIZES = (
    _size("size-1m", "1.1 million parameters", Shape(128, 5, 2, 2, 320), 3e-3),
    _size("size-3m", "3.3 million", Shape(256, 4, 4, 4, 640), 1.5e-3),
    _size("size-20m", "19.8 million", Shape(512, 6, 8, 8, 1408), 7.5e-4),
)
# What a second round brings, each beside the plainest other use of the same rows.
ROUNDS = (
    Variant(
        "more-made", "base, then half as many rows made by rule", settings=_ROUND, seed=3,
        start="base", share=0.5,
    ),
    Variant(
        "more-own", "base, then half as many of the upstream's own", settings=_ROUND, rows="own",
        seed=3, start="base", share=0.5,
    ),
    Variant(
        "own-again", "more-own, then its rows once more", settings=_ROUND, rows="own", seed=3,
        start="more-own", share=0.5,
    ),
    Variant(
        "own-preferred", "more-own, then DPO where it is wrong on its rows", rows="own",
        start="more-own", prefer=True,
    ),
)  # fmt: skip
VARIANTS = (*CHOICES, *SIZES, *ROUNDS)
