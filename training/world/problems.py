"""Word problems with one sentence per step, and their gold replies.

A problem is a chain of steps. Each step computes one number from earlier ones, so a wrong step
spoils all that follow. The steps keep references (`Ref`) rather than numbers: the right sentence
can be worked out for any committed text, also one that went wrong before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from training.world import lexicon
from training.world.split import Split, split_of, stream

MAX_VALUE = 199
"""No number in a problem is larger: what models of a few million parameters can be taught."""


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier step, by its index."""

    step: int


Operand = int | Ref


def compute(op: str, left: int, right: int) -> int:
    """Return `left op right` for one of the world's operators."""
    match op:
        case "+":
            return left + right
        case "-":
            return left - right
        case "x":
            return left * right
        case "/":
            return left // right
        case _:
            raise ValueError(f"unknown operator {op!r}")


@dataclass(frozen=True, slots=True)
class Step:
    """One sentence of a reply. `op` is "" for a sentence that only states a number."""

    phrase: str
    op: str
    left: Operand
    right: Operand = 0
    obj: str = ""

    def operands(self, values: Sequence[int]) -> tuple[int, int]:
        """Return the numbers this step works on, given the results of the steps before it."""
        left = values[self.left.step] if isinstance(self.left, Ref) else self.left
        right = values[self.right.step] if isinstance(self.right, Ref) else self.right
        return left, right

    def value(self, values: Sequence[int]) -> int:
        """Return this step's result, given the results of the steps before it."""
        left, right = self.operands(values)
        return compute(self.op, left, right) if self.op else left

    def say(self, left: int, right: int, result: int, op: str | None = None) -> str:
        """Write the sentence with these numbers, right or wrong."""
        if not self.op:
            return self.phrase.replace("#", str(result)) + "."
        sign = self.op if op is None else op
        return f"{self.phrase}, so {left} {sign} {right} = {result} {self.obj}."

    def sentence(self, values: Sequence[int]) -> str:
        """Write the right sentence, given the results of the steps before it."""
        left, right = self.operands(values)
        return self.say(left, right, self.value(values))


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its steps, the last of which states the answer."""

    key: str
    question: str
    steps: tuple[Step, ...]

    @property
    def values(self) -> list[int]:
        """The right result of every step."""
        values: list[int] = []
        for step in self.steps:
            values.append(step.value(values))
        return values

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def sentences(self) -> list[str]:
        """The gold reply, one right sentence per step."""
        values = self.values
        return [step.sentence(values[:i]) for i, step in enumerate(self.steps)]

    @property
    def reply(self) -> str:
        return " ".join(self.sentences)


class _Impossible(Exception):
    """The drawn chain leaves the range of numbers; draw again."""


class _Draft:
    """A problem being drawn: question sentences, steps and values side by side."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.said: list[str] = []
        self.steps: list[Step] = []
        self.values: list[int] = []
        self.shape: list[str] = []

    def add(self, template: str, phrase: str, step: Step) -> None:
        value = step.value(self.values)
        if not 2 <= value <= MAX_VALUE:
            raise _Impossible
        self.shape.append(template)
        self.said.append(phrase)
        self.steps.append(step)
        self.values.append(value)

    def operand(self, op: str) -> int:
        """Draw a number that keeps the result in range."""
        now = self.values[-1]
        top = min(99, MAX_VALUE - now if op == "+" else now - 2)
        low = 3 if self.rng.random() < 0.15 else 11
        if top < low:
            raise _Impossible
        return self.rng.randint(low, top)


def _change(draft: _Draft, theme: lexicon.Theme, it: str, obj: str) -> None:
    """Append one step that changes the count."""
    rng, now = draft.rng, Ref(len(draft.steps) - 1)
    kind = rng.choices(("+", "-", "x", "/"), (43, 37, 10, 10))[0]
    operand: int
    if kind == "x":
        operand, template = rng.choice(theme.times)
        phrase = template.format(it=it)
    elif kind == "/":
        if draft.values[-1] % 2:
            raise _Impossible
        operand, template = 2, rng.choice(theme.half)
        phrase = template.format(it=it)
    else:
        operand, template = draft.operand(kind), rng.choice(theme.add if kind == "+" else theme.sub)
        phrase = template.format(it=it, n=operand)
    draft.add(template, phrase, Step(phrase, kind, now, operand, obj))


def _single(draft: _Draft, changes: int) -> str:
    """One owner, a start and a chain of changes. Returns the closing question."""
    rng = draft.rng
    theme = rng.choice(lexicon.THEMES)
    obj = rng.choice(theme.objects)
    she = rng.random() < 0.5
    who, it = rng.choice(lexicon.SHE if she else lexicon.HE), "She" if she else "He"
    draft.shape += [theme.name, who, obj]
    if rng.random() < 0.25:
        template = rng.choice(theme.groups)
        k, n = rng.randint(2, 4), rng.randint(11, 49)
        phrase = template.format(who=who, k=k, n=n, obj=obj)
        draft.add(template, phrase, Step(phrase, "x", k, n, obj))
        changes -= 1
    else:
        template, n = rng.choice(theme.start), rng.randint(12, 99)
        phrase = template.format(who=who, n=n, obj=obj)
        step = Step(template.format(who=who, n="#", obj=obj), "", n, obj=obj)
        draft.add(template, phrase, step)
    for _ in range(changes):
        _change(draft, theme, it, obj)
    return rng.choice(theme.ask).format(who=who, obj=obj)


def _pair(draft: _Draft, changes: int) -> str:
    """Two owners compared and put together. Returns the closing question."""
    rng = draft.rng
    obj = rng.choice(rng.choice(lexicon.THEMES[:2]).objects)
    who, other = rng.sample(lexicon.SHE + lexicon.HE, 2)
    draft.shape += ["pair", who, other, obj]
    n = rng.randint(12, 80)
    template = rng.choice(lexicon.THEMES[0].start)
    step = Step(template.format(who=who, n="#", obj=obj), "", n, obj=obj)
    draft.add(template, template.format(who=who, n=n, obj=obj), step)
    kind = rng.choices(("+", "-", "x"), (4, 4, 2))[0]
    template = rng.choice({"+": lexicon.MORE, "-": lexicon.FEWER, "x": lexicon.TWICE}[kind])
    operand = 2 if kind == "x" else draft.operand(kind)
    phrase = template.format(who=who, other=other, n=operand, obj=obj)
    draft.add(template, phrase, Step(phrase, kind, Ref(0), operand, obj))
    template = rng.choice(lexicon.TOGETHER)
    phrase = template.format(obj=obj)
    draft.add(template, phrase, Step(phrase, "+", Ref(0), Ref(1), obj))
    for _ in range(max(0, changes - 2)):
        kind = rng.choice("+-")
        template = rng.choice(lexicon.THEY_ADD if kind == "+" else lexicon.THEY_SUB)
        operand = draft.operand(kind)
        phrase = template.format(n=operand)
        draft.add(template, phrase, Step(phrase, kind, Ref(len(draft.steps) - 1), operand, obj))
    return rng.choice(lexicon.PAIR_ASK).format(obj=obj)


def _draw(rng: random.Random) -> Problem:
    draft = _Draft(rng)
    changes = rng.choices((2, 3, 4), (40, 35, 25))[0]
    ask = _pair(draft, changes) if rng.random() < 0.15 else _single(draft, changes)
    final = Step("The answer is #", "", Ref(len(draft.steps) - 1))
    said = [draft.said[0]]
    for phrase in draft.said[1:]:
        link = rng.choice(lexicon.THEN)
        # Names keep their capital after a link word, everything else loses it.
        named = phrase.split()[0] in lexicon.NAMES
        said.append(link + (phrase[0].lower() + phrase[1:] if link and not named else phrase))
    question = " ".join([*(f"{phrase}." for phrase in said), ask])
    return Problem("/".join(draft.shape), question, (*draft.steps, final))


def sample_problem(rng: random.Random, split: Split) -> Problem:
    """Draw one problem whose instance belongs to `split`."""
    while True:
        try:
            problem = _draw(rng)
        except _Impossible:
            continue
        if split_of(problem.key) == split:
            return problem


def problems(seed: int, count: int, split: Split) -> list[Problem]:
    """Return `count` problems of a split; the same seed gives the same problems."""
    rng = stream(split, "problems", seed)
    return [sample_problem(rng, split) for _ in range(count)]
