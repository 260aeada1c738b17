"""Sets of solutions in steps: the first wrong step, and what it should have been."""

from __future__ import annotations

import re
from collections.abc import Iterator

from training.data.make import Maker
from training.data.rows import BadRecord, Example, SetAside, conversation, text_of
from training.data.sources.source import Record, Source

_STEP = re.compile(r"^\s*Step\s*(\d+)\s*[:.]\s*", re.IGNORECASE)
_ANSWER = re.compile(r"^\s*Solution\s*:", re.IGNORECASE)


def texts(record: Record, name: str) -> list[str]:
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadRecord(f"{name!r} must be a list of texts")
    return value


def _unnumbered(step: str) -> str:
    """Without `Step 3:`, which would teach the number, not the step."""
    return _STEP.sub("", step).strip()


def _numbered(lines: list[str]) -> list[tuple[int, str]]:
    """The steps with their numbers, 0 for a line before the first and for the answer. A step may
    take several lines, and there are empty ones: the first wrong step is told by its number, not
    by its place among the lines."""
    steps: list[tuple[int, str]] = []
    for line in lines:
        label = _STEP.match(line)
        if label:
            steps.append((int(label[1]), _unnumbered(line)))
        elif not steps or _ANSWER.match(line):
            steps.append((0, line.strip()))
        else:
            number, text = steps[-1]
            steps[-1] = (number, f"{text}\n{line.strip()}".strip())
    return steps


def mr_ben(record: Record, make: Maker) -> Iterator[Example]:
    """Model solutions with the first wrong step and people's versions of it."""
    if record.get("Subject") == "coding":
        raise SetAside("coding: its solutions are programs, not steps")
    question = text_of(record, "Question").strip()
    if options := record.get("Options"):
        question += f"\n{str(options).strip()}"
    steps = _numbered(texts(record, "Model_Solution_Steps"))
    right = [text for _, text in steps]
    turns = conversation(question)
    verdict = record.get("Model_Solution_Correctness")
    if verdict == "correct":
        return make.steps(turns, right)
    if verdict != "incorrect":
        raise BadRecord(f"'Model_Solution_Correctness' must be correct or not, not {verdict!r}")
    number = str(record.get("Model_Solution_First_Error_Step")).strip()
    places = [at for at, (known, _) in enumerate(steps) if str(known) == number != "0"]
    if len(places) != 1:
        raise SetAside("the first wrong step is none of the numbered ones")
    better = []
    for one in texts(record, "Model_Solution_Rectified_First_Error_Step"):
        label = _STEP.match(one)
        if label and label[1] != number:
            raise SetAside("the step that was written anew is another one")
        better.append(_unnumbered(one))
    if not any(better):
        raise SetAside("nobody wrote the step anew")
    at = places[0]
    return make.steps(turns, right[:at], right[at], filter(None, better))


def prm(record: Record, make: Maker) -> Iterator[Example]:
    """Right solutions with one step made wrong on purpose."""
    name = record.get("classification")
    if name in ("circular", "redundency", "multi_solutions"):
        raise SetAside(f"{name}: steps were put in, none was changed")
    right, wrong = texts(record, "original_process"), texts(record, "modified_process")
    question = text_of(record, "original_question", "question").strip()
    at = next(
        (i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a.strip() != b.strip()),
        None,
    )
    if at is None:
        raise SetAside("no step differs")
    return make.steps(conversation(question), right[:at], wrong[at], [right[at]])


_BRACKETS = {")": "(", "]": "[", "}": "{", ">": "<"}


def _dyck(steps: list[str], at: int) -> str | None:
    """The stack after this step, worked out from the step before it."""
    symbol, found, _ = steps[at].partition(" ; stack:")
    _, _, before = steps[at - 1].rpartition("stack:")
    symbol, stack = symbol.strip(), before.split()
    if not found or "stack:" not in steps[at - 1]:
        return None
    stack = [] if stack == ["empty"] else stack
    if symbol in _BRACKETS.values():
        stack = [*stack, symbol]
    elif stack and _BRACKETS.get(symbol) == stack[-1]:
        stack = stack[:-1]
    else:
        return None
    return f"{symbol} ; stack: {' '.join(stack) or 'empty'}"


def big_bench(record: Record, make: Maker) -> Iterator[Example]:
    """Traces with the place of the first mistake. The right steps are kept; a wrong stack is worked
    out anew (it follows from the step before), other mistakes are not corrected by anyone."""
    steps = texts(record, "steps")
    turns = conversation(text_of(record, "input"))
    at = record.get("mistake_index")
    if at is None:
        return make.steps(turns, steps)
    if not isinstance(at, int) or not 0 <= at < len(steps):
        raise BadRecord(f"'mistake_index' must be null or the place of a step, not {at!r}")
    better = _dyck(steps, at) if at else None
    if not any(step.strip() for step in steps[:at]) and not better:
        raise SetAside("the first step is wrong, and no correction is known")
    return make.steps(turns, steps[:at], steps[at], [better] if better else [])


def verify_cot(record: Record, make: Maker) -> Iterator[Example]:
    """Whole solutions, right or wrong. Of the wrong ones nobody wrote a right version."""
    if record.get("correct") is not True:
        raise SetAside("wrong, and no correction is known")
    return make.keep(conversation(text_of(record, "question")), text_of(record, "answer").strip())


SOURCES = (
    Source("mr-ben", "model solutions, first wrong step, people's corrections",
           "Question, Options, Model_Solution_Steps, Model_Solution_First_Error_Step, ...", mr_ben,
           similarity=0.3),
    Source("prmbench", "right solutions with a step made wrong",
           "original_question, original_process, modified_process, classification", prm),
    Source("big-bench-mistake", "traces with the place of the first mistake",
           "input, steps, mistake_index", big_bench, similarity=0.0),
    Source("verify-cot", "solutions judged right or wrong", "question, answer, correct",
           verify_cot, evaluation=True),
)  # fmt: skip
