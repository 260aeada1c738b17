"""Packed rows to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from training.recipe.rows import IGNORE, Encoded


@dataclass(frozen=True, slots=True)
class Collate:
    """Rows to one batch, without an attention mask.

    `flat`: one long row, with the bounds of its examples, for flash attention and `segments`.
    Otherwise transformers derives the mask from positions that restart, and short rows are padded.
    """

    rows: Sequence[Sequence[Encoded]]
    pad: int
    flat: bool

    def __call__(self, numbers: list[dict[str, int]]) -> dict[str, Any]:
        rows = [_columns(self.rows[number["row"]]) for number in numbers]
        if self.flat:
            joined = {key: [x for row in rows for x in row[key]] for key in rows[0]}
            lengths = [len(one.ids) for number in numbers for one in self.rows[number["row"]]]
            bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
            return {key: torch.tensor([values]) for key, values in joined.items()} | {
                "cu_seq_lens_q": bounds,
                "cu_seq_lens_k": bounds,
                "max_length_q": max(lengths),
                "max_length_k": max(lengths),
            }
        longest = max(len(row["input_ids"]) for row in rows)
        # What pads a row is an example of its own, that nothing is learnt from.
        fill = {
            "input_ids": [self.pad] * longest,
            "labels": [IGNORE] * longest,
            "position_ids": list(range(longest)),
        }
        return {
            key: torch.tensor([row[key] + more[: longest - len(row[key])] for row in rows])
            for key, more in fill.items()
        }


def _columns(row: Sequence[Encoded]) -> dict[str, list[int]]:
    return {
        "input_ids": [token for one in row for token in one.ids],
        "labels": [label for one in row for label in one.labels],
        "position_ids": [place for one in row for place in range(len(one.ids))],
    }
