"""Whether a sentence is right given what precedes it, and what it should have been.

Rule: a step is judged by its numbers and operator, against the step that is due, computed from
the numbers that the committed text really has. Wording that differs is not a fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.world.problems import Problem

_NUMBERS = re.compile(r"\d+| [+x/-] (?=\d)")
_BOUNDARY = re.compile(r"(?<=[.!?])\s+")
_ANSWER = re.compile(r"answer is\s*:?\s*\$?(-?\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`correction` is the right sentence ("" = should not be there); `end`: it is the last one."""

    right: bool
    correction: str
    end: bool


def sentences_of(reply: str) -> list[str]:
    """Split one of this world's replies into its sentences, without outer whitespace."""
    return [part for part in _BOUNDARY.split(reply.strip()) if part]


def _gist(sentence: str) -> list[str]:
    return _NUMBERS.findall(sentence)


def judge_step(problem: Problem, committed: str, sentence: str) -> Judgement:
    """Judge the next sentence of a reply to `problem`."""
    before = sentences_of(committed)
    if len(before) >= len(problem.steps):
        return Judgement(not sentence.strip(), "", True)
    gold, values = problem.values, list[int]()
    for i, text in enumerate(before):
        found = re.findall(r"\d+", text)
        values.append(int(found[-1]) if found else gold[i])
    due = problem.steps[len(before)].sentence(values)
    end = len(before) + 1 == len(problem.steps)
    return Judgement(_gist(sentence) == _gist(due), due, end)


def judge_reply(problem: Problem, reply: str) -> list[Judgement]:
    """Judge every sentence of a reply, each given the ones before it as they stand."""
    parts = sentences_of(reply)
    return [judge_step(problem, " ".join(parts[:i]), part) for i, part in enumerate(parts)]


def final_answer(reply: str) -> str | None:
    """Return the number a reply ends on: the last "answer is N", else its last number."""
    stated: list[str] = _ANSWER.findall(reply)
    numbers: list[str] = stated or re.findall(r"-?\d+", reply)
    return str(int(numbers[-1])) if numbers else None


def grade(answer: str, reply: str) -> bool:
    """Return whether a reply's final answer is right."""
    return final_answer(reply) == answer.strip()
