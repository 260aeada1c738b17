"""Which instances are for training and which are held out.

Rule: an instance (template, names, objects and chain of operations, without its numbers) belongs
to exactly one split, decided by a hash of its key. Every number combination of a test instance is
therefore unseen in training, whatever the seed. The split's name is part of every random stream,
so the same seed never draws the same problem twice across splits.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

Split = Literal["train", "test"]

TEST_SHARE = 8
"""One instance in this many is held out."""


def split_of(key: str) -> Split:
    """Return the split that the instance named by `key` belongs to."""
    digest = hashlib.sha256(key.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"


def stream(split: Split, kind: str, seed: int) -> random.Random:
    """Return the random stream of one split, kind of data and seed."""
    return random.Random(f"{split}/{kind}/{seed}")
