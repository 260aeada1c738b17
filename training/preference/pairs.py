"""Pairs from the aligner's own mistakes.

A row says what should become of a sentence; the aligner is asked, and where it says something else,
that is the rejected answer. So a pair always shows what this model does wrong, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.records import Review, Turn
from training.heldout.answers import Answer, Judge
from training.recipe.rows import DataError, Sample


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one review: `chosen` is right. Each is a text and whether the reply ends."""

    review: Review
    chosen: tuple[str, bool]
    rejected: tuple[str, bool]
    group: str
    where: str = ""

    def samples(self) -> tuple[Sample, Sample]:
        """Chosen and rejected as rows."""
        return tuple(  # type: ignore[return-value]
            Sample(self.review, text, end, self.group, self.where)
            for text, end in (self.chosen, self.rejected)
        )


def mistakes(
    judge: Judge,
    samples: Sequence[Sample],
    told: Callable[[int], object] = lambda done: None,
    *,
    temperature: float = 0.0,
) -> list[Pair]:
    """One pair for each row that `judge` answers wrongly; what is no verdict cannot be a pair."""
    found = []
    answers = judge.answer(samples, told, temperature=temperature, chances=False)
    for sample, answer in zip(samples, answers, strict=True):
        said = _said(sample, answer)
        right = (sample.correction, sample.end)
        if said is not None and said != right:
            found.append(Pair(sample.review, right, said, sample.group, sample.where))
    return found


def different(pairs: Iterable[Pair]) -> list[Pair]:
    """Without those that say the same as an earlier one."""
    return list({(p.review, p.chosen, p.rejected): p for p in pairs}.values())


def _said(sample: Sample, answer: Answer) -> tuple[str, bool] | None:
    if answer.verdict is None:
        return None
    new = answer.verdict.replacement
    return (sample.review.sentence if new is None else new, answer.verdict.end)


def write(pairs: Iterable[Pair], file: Path) -> None:
    """JSON lines; the file is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(file.suffix + ".part")
    with beside.open("w", encoding="utf-8") as out:
        for pair in pairs:
            out.write(json.dumps(_plain(pair), ensure_ascii=False) + "\n")
    beside.replace(file)


def read(file: Path) -> Iterator[Pair]:
    """Raises `DataError` at the first bad line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            try:
                yield replace(_pair(json.loads(line)), where=where)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{where}: {type(error).__name__}: {error}") from error


def _plain(pair: Pair) -> dict[str, Any]:
    review = pair.review
    return {
        "question": [{"role": t.role, "content": t.text} for t in review.conversation],
        "prefix": review.committed,
        "sentence": review.sentence,
        "scope": review.scope,
        "chosen": {"text": pair.chosen[0], "end": pair.chosen[1]},
        "rejected": {"text": pair.rejected[0], "end": pair.rejected[1]},
        "group": pair.group,
    }


def _pair(data: dict[str, Any]) -> Pair:
    if data["scope"] not in ("sentence", "whole"):
        raise ValueError("scope must be 'sentence' or 'whole'")
    turns = tuple(Turn(str(t["role"]), str(t["content"])) for t in data["question"])
    review = Review(turns, str(data["prefix"]), str(data["sentence"]), data["scope"])
    chosen, rejected = ((str(data[n]["text"]), bool(data[n]["end"])) for n in _SIDES)
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    return Pair(review, chosen, rejected, str(data["group"]))


_SIDES = ("chosen", "rejected")
