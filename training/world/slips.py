"""How careless writers go wrong: the upstream learns from them, the aligner learns to mend them.

Slips depend on how hard a sum is, as people's do: carrying or borrowing across far-apart unit
digits is forgotten more often than not, so that even the most likely next word is often wrong.
That makes the upstream fallible at every temperature; nothing else in this project does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.world.problems import Problem, Step, compute


@dataclass(frozen=True, slots=True)
class Carelessness:
    """How often each slip happens; `hard` is the units' sum (gap + 9) from which a sum is hard."""

    hard: int = 13
    hard_rate: float = 0.8
    easy_rate: float = 0.08
    misread_rate: float = 0.015
    sign_rate: float = 0.01
    final_rate: float = 0.02


def carries(op: str, left: int, right: int, hard: int = 10) -> bool:
    """Return whether the units carry (or borrow), at difficulty `hard` or above."""
    a, b = left % 10, right % 10
    match op:
        case "+":
            return a + b >= hard
        case "-":
            return b - a >= hard - 9
        case "x":
            return a * b >= hard
        case _:
            return False


def forget_carry(op: str, left: int, right: int) -> int:
    """Return the result with the carry or borrow left out."""
    result = compute(op, left, right)
    match op:
        case "+":
            return result - 10
        case "-":
            return result + 10
        case "x":
            return result - (left % 10) * (right % 10) // 10 * 10
        case _:
            return result


def misread(number: int, rng: random.Random, others: Sequence[int] = ()) -> int:
    """Return a number that is read wrongly: swapped or changed digits, or another one."""
    choices = [n for n in others if n != number]
    digits = str(number)
    if len(digits) > 1 and int(digits[::-1]) != number:
        choices.append(int(digits[::-1]))
    for _ in range(3):
        choices.append(max(1, number + rng.choice((-10, 10, -1, 1, -2, 2, -9, 9, 100, -100))))
    return rng.choice([n for n in choices if n != number] or [number + 1])


def careless_sentence(
    step: Step, values: Sequence[int], rng: random.Random, how: Carelessness
) -> tuple[str, int]:
    """Write one step as a careless writer does. Returns the sentence and its result."""
    left, right = step.operands(values)
    sign = step.op
    if not sign:
        rate = how.final_rate if values else how.misread_rate
        result = misread(left, rng, values[-3:]) if rng.random() < rate else left
        return step.say(left, right, result), result
    if rng.random() < how.misread_rate:
        if rng.random() < 0.5:
            left = misread(left, rng, values)
        elif sign in "+-":
            right = misread(right, rng, values)
    if sign in "+-" and rng.random() < how.sign_rate:
        sign = "-" if sign == "+" else "+"
    if sign == "-" and right > left:
        left, right = right, left
    result = compute(sign, left, right)
    if carries(sign, left, right):
        rate = how.hard_rate if carries(sign, left, right, how.hard) else how.easy_rate
        if rng.random() < rate:
            result = forget_carry(sign, left, right)
    return step.say(left, right, result, sign), result


def careless_reply(problem: Problem, rng: random.Random, how: Carelessness) -> str:
    """Write a reply in which each slip spoils the steps after it."""
    values: list[int] = []
    said: list[str] = []
    for step in problem.steps:
        sentence, value = careless_sentence(step, values, rng, how)
        said.append(sentence)
        values.append(value)
    return " ".join(said)


def corrupt(step: Step, values: Sequence[int], rng: random.Random) -> str:
    """Return a wrong version of a right step, of any kind: for the aligner's training rows."""
    left, right = step.operands(values)
    result = step.value(values)
    good = step.sentence(values)
    while True:
        a, b, sign, c, phrase = left, right, step.op, result, step.phrase
        kind = rng.choices(("carry", "digit", "operand", "sign", "stale"), (35, 25, 20, 10, 10))[0]
        if kind == "stale" and values:
            if sign:
                a = rng.choice(values)
                c = abs(compute(sign, a, b))
            else:
                c = rng.choice(values)
        elif kind == "digit" or not sign:
            c = misread(c, rng)
        elif kind == "carry":
            c = forget_carry(sign, a, b) if carries(sign, a, b) else c + rng.choice((-10, 10))
        elif kind == "operand":
            if rng.random() < 0.5:
                a = misread(a, rng, values)
            else:
                b = misread(b, rng, values)
                if rng.random() < 0.3:
                    phrase = phrase.replace(str(right), str(b), 1)
            c = compute(sign, a, b)
        elif kind == "sign":
            sign = rng.choice([s for s in "+-x/" if s != sign])
            c = compute(sign, a, max(1, b))
        if c < 0 or c > 999:
            continue
        bad = replace(step, phrase=phrase).say(a, b, c, sign)
        if bad != good:
            return bad
