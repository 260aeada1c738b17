"""Grade-school word problems: gold solutions with a line made wrong, and recorded ones."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from training.data.align import align_best
from training.data.files import DataError, Trouble, expand, records
from training.data.make import Maker
from training.data.rows import BadRecord, Example, SetAside, conversation, group_of, text_of
from training.data.sources.solutions import texts
from training.data.sources.source import Record, Source

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_RESULT = re.compile(r"(?<![\d.])(\d+)(?![\d.]*\d)")


def lines(answer: str) -> list[str]:
    """A solution's lines without the calculator's marks; `#### 72` becomes a sentence."""
    kept = [_CALCULATOR.sub("", line).strip() for line in answer.splitlines()]
    return [re.sub(r"^(####|A:)\s*(.+)$", r"The answer is \2.", line) for line in kept if line]


def slip(line: str, rng: random.Random) -> str | None:
    """The line with its last whole number wrong, as people get it wrong: one off, ten off, two
    digits swapped, one digit another. None where it has none."""
    found = list(_RESULT.finditer(line))
    if not found:
        return None
    value = found[-1][1]
    number = int(value)
    options = {str(number + off) for off in (-10, -1, 1, 10) if number + off >= 0}
    if len(value) > 1:
        options.add(value[:-2] + value[-1] + value[-2])
        options.add(value[:-1] + str((int(value[-1]) + rng.randrange(1, 10)) % 10))
    wrong = rng.choice(sorted({one.lstrip("0") or "0" for one in options} - {value}))
    return line[: found[-1].start(1)] + wrong + line[found[-1].end(1) :]


def gold(record: Record, make: Maker) -> Iterator[Example]:
    """A gold solution with one line made wrong; which and how follows from the question."""
    question = text_of(record, "question").strip()
    solution = lines(text_of(record, "answer"))
    rng = random.Random(group_of(question))
    places = [at for at, line in enumerate(solution) if slip(line, rng) is not None]
    if not places:
        raise SetAside("no line with a whole number")
    at = rng.choice(places)
    wrong = slip(solution[at], rng)
    turns = conversation(question)
    last = at + 1 == len(solution)
    yield from make.steps(turns, solution[:at], wrong, [solution[at]], ends=last)


def recorded(record: Record, make: Maker) -> Iterator[Example]:
    """Recorded solutions to test questions. A wrong one and the gold one are two ways to solve
    it, so it is a whole answer only; a right one is kept."""
    turns = conversation(text_of(record, "question"))
    right = "\n".join(lines(text_of(record, "ground_truth")))
    found = 0
    for model, one in record.items():
        if not isinstance(one, Mapping):
            continue
        found += 1
        answer = "\n".join(lines(text_of(one, "solution", empty=True)))
        if not answer:
            continue
        if one.get("is_correct") is True:
            yield from make.keep(turns, answer)
        elif one.get("is_correct") is False:
            yield from make.whole_only(turns, answer, right)
        else:
            raise BadRecord(f"{model}: 'is_correct' must be true or false")
    if not found:
        raise BadRecord("no recorded solution")


@cache
def _train_questions(folder: Path) -> frozenset[str]:
    found = set()
    for path in expand(folder, "train*"):
        for place, record in records(path):
            if isinstance(record, Trouble):
                raise DataError(f"{place}: {record.reason}")
            found.add(group_of(text_of(record, "question")))
    return frozenset(found)


def tutored(record: Record, make: Maker) -> Iterator[Example]:
    """Students' solutions with the wrong step. Only questions of GSM8K's train split: the others
    are test questions. The set has no corrected step, so the nearest sentence of the corrected
    response stands for it, where one is near enough."""
    question = text_of(record, "problem").strip()
    if make.beside is None:
        raise DataError(
            "verify-then-generate needs GSM8K's folder beside its own, to tell train questions"
        )
    if group_of(question) not in _train_questions(make.beside / "gsm8k"):
        raise SetAside("not a train question of GSM8K")
    steps = texts(record, "student_incorrect_solution")
    at = record.get("incorrect_index")
    if not isinstance(at, int) or not 0 <= at < len(steps):
        raise SetAside(f"'incorrect_index' is {at!r} of {len(steps)}")
    better = text_of(record, "student_correct_response").strip()
    near = align_best(steps[at], better)
    turns = conversation(question)
    yield from make.steps(turns, steps[:at], steps[at], [near] if near else [])
    yield from make.whole_only(turns, "\n".join(steps), better)


SOURCES = (
    Source("gsm8k", "gold solutions with a line made wrong", "question, answer", gold,
           files="train*"),
    Source("gsm8k-recorded", "recorded model solutions to test questions",
           "question, ground_truth, {model: {solution, is_correct}}", recorded,
           files="example_model_solutions*", evaluation=True),
    Source("verify-then-generate", "students' solutions and the wrong step",
           "problem, student_incorrect_solution, incorrect_index, student_correct_response",
           tutored),
)  # fmt: skip
