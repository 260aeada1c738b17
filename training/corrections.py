"""Training rows for the aligner: right and wrong versions of sentences, in the context they need.

Sources: slips of many kinds made by rule, and the upstream's own sampled mistakes on train
problems, corrected by the world. Nothing here ever reads the test split.

Rows that share a question and a committed text travel together (`packing.Example`): the trunk is
the conversation and a right reply, each branch one review at its place in that reply.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from training.generate import Ids
from training.packing import IGNORE, Example
from training.tokenizer import ANSWER, END, EOS, KEEP, REVISION, SENTENCE, Coder
from training.world.babble import babble
from training.world.chat import Message, sample_conversation, sample_task
from training.world.judge import judge_reply, judge_step, sentences_of
from training.world.problems import Problem
from training.world.slips import Carelessness, careless_reply, careless_sentence, corrupt
from training.world.split import Split
from training.world.tone import Request, judge_tone, write_note


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the kinds of rows."""

    wrong: float = 0.45
    careless: float = 0.5
    whole: float = 0.17
    notes: float = 0.15
    babble: float = 0.1
    cut: float = 0.08
    sampled: float = 0.3
    extra: float = 0.5
    keep_token: bool = True
    decision_weight: float = 4.0
    trunk_weight: float = 0.2


@dataclass(frozen=True, slots=True)
class Row:
    """One review: the sentence at a place in the reply, and the answer (None = keep).

    `cut`: the sentence is the beginning of one, as the end of a reply is that ran into its limit.
    """

    at: int
    sentence: str
    correction: str | None
    end: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A conversation, its right reply, and reviews of versions of its sentences.

    `known` is False where nobody could have foreseen the text.
    """

    messages: tuple[Message, ...]
    sentences: tuple[str, ...]
    rows: tuple[Row, ...]
    whole: tuple[tuple[str, str | None], ...] = ()
    known: bool = True


def _problem_row(problem: Problem, at: int, rng: random.Random, mix: Mix) -> Row:
    """One review of step `at`: right as often as `mix.wrong` leaves it."""
    step, values = problem.steps[at], problem.values[:at]
    right = step.sentence(values)
    if rng.random() >= mix.wrong:
        return Row(at, right, None)
    if rng.random() < mix.careless:
        for _ in range(4):
            text, _ = careless_sentence(step, values, rng, Carelessness(10, 0.9, 0.9, 0.1, 0.05, 1))
            if text != right:
                return Row(at, text, right, at + 1 == len(problem.steps))
    return Row(at, corrupt(step, values, rng), right, at + 1 == len(problem.steps))


def _problem(
    problem: Problem, messages: tuple[Message, ...], rng: random.Random, mix: Mix
) -> Reviewed:
    sentences = tuple(problem.sentences)
    if rng.random() < mix.whole:
        how = Carelessness(10, 0.5, 0.3, 0.04, 0.03, 0.05)
        wrong = rng.random() < 0.7
        reply = careless_reply(problem, rng, how) if wrong else problem.reply
        right = all(one.right for one in judge_reply(problem, reply))
        return Reviewed(messages, sentences, (), ((reply, None if right else problem.reply),))
    rows = [_problem_row(problem, at, rng, mix) for at in range(len(sentences))]
    rows += [
        _problem_row(problem, at, rng, mix)
        for at in range(len(sentences))
        if rng.random() < mix.extra
    ]
    if rng.random() < 0.04:
        # Nothing follows the answer: what comes after it is deleted and the reply ends.
        rows.append(Row(len(sentences), rng.choice(sentences), "", True))
    return Reviewed(messages, sentences, tuple(rows))


def _note(
    request: Request, messages: tuple[Message, ...], rng: random.Random, mix: Mix
) -> Reviewed:
    polite = tuple(sentences_of(write_note(request, rng, 0)))
    if rng.random() < mix.whole:
        reply = write_note(request, rng)
        better = [one.correction for part in sentences_of(reply) if (one := judge_tone(part))]
        fixed = " ".join(better)
        return Reviewed(messages, polite, (), ((reply, None if fixed == reply else fixed),))
    rows = []
    other = tuple(sentences_of(write_note(request, rng, 1)))
    for at in range(len(polite)):
        if rng.random() < 0.5:
            rows.append(Row(at, polite[at], None))
        else:
            rude = other[min(at, len(other) - 1)]
            verdict = judge_tone(rude)
            assert verdict is not None
            rows.append(Row(at, rude, verdict.correction))
    return Reviewed(messages, polite, tuple(rows))


def _talk(messages: tuple[Message, ...], said: str, rng: random.Random) -> Reviewed:
    parts = tuple(sentences_of(said))
    rows = tuple(Row(at, part, None) for at, part in enumerate(parts))
    return Reviewed(messages, parts, rows, ((said, None),) if rng.random() < 0.4 else ())


def cut_short(reviewed: Reviewed, rng: random.Random, share: float) -> Reviewed:
    """With the beginnings of some of its sentences as further rows: nobody can say what is wrong
    with them, so they are kept."""
    rows = []
    for row in reviewed.rows:
        words = row.sentence.split(" ")
        if rng.random() < share and len(words) > 1:
            rows.append(
                Row(row.at, " ".join(words[: rng.randrange(1, len(words))]), None, cut=True)
            )
    return replace(reviewed, rows=(*reviewed.rows, *rows))


def _babble(rng: random.Random) -> Reviewed:
    """A conversation about anything else: kept as it is."""
    said = tuple(babble(rng) for _ in range(rng.randint(1, 5)))
    rows = tuple(Row(at, text, None) for at, text in enumerate(said))
    whole = ((" ".join(said), None),) if rng.random() < 0.2 else ()
    return Reviewed(({"role": "user", "content": babble(rng)},), said, rows, whole, known=False)


def synthetic(rng: random.Random, mix: Mix, split: Split = "train") -> Reviewed:
    """Draw one conversation of a split with reviews made by rule."""
    if rng.random() < mix.babble:
        return _babble(rng)
    talk = sample_conversation(rng, split, notes=mix.notes)
    if isinstance(talk.task, Problem):
        return _problem(talk.task, talk.messages, rng, mix)
    if isinstance(talk.task, Request):
        return _note(talk.task, talk.messages, rng, mix)
    return _talk(talk.messages, talk.reply, rng)


def judged(task: Problem | Request, committed: str, sentence: str, at: int) -> Row | None:
    """Turn one sentence of the upstream into a row; None where the world cannot judge it."""
    if isinstance(task, Problem):
        verdict = judge_step(task, committed, sentence)
        if verdict.right:
            return Row(at, sentence, None)
        return Row(at, sentence, verdict.correction, verdict.end)
    mended = judge_tone(sentence)
    if mended is None:
        return None
    return Row(at, sentence, None if mended.right else mended.correction)


def encode(reviewed: Reviewed, coder: Coder, mix: Mix) -> Example:
    """Lay out one conversation and its reviews."""
    example = Example()
    example.add(coder.review_head(reviewed.messages), weight=0)
    head = len(example)
    sees = [head]
    if reviewed.rows:
        for i, sentence in enumerate(reviewed.sentences):
            ids = coder.data(sentence if i == 0 else " " + sentence)
            weight = mix.trunk_weight if reviewed.known else 0
            example.add(ids, weight, known=ids if reviewed.known else None)
            sees.append(len(example))
    branches: list[tuple[int, str, Row]] = [(sees[row.at], SENTENCE, row) for row in reviewed.rows]
    branches += [(head, ANSWER, Row(0, reply, better)) for reply, better in reviewed.whole]
    for branch, (seen, kind, row) in enumerate(branches, 1):
        text, better = row.sentence, row.correction
        known_text = reviewed.known and not row.cut
        # Without the keep token, an unchanged sentence is answered by itself; but not one from
        # outside the world, which such a small model could not even copy.
        again = better is None and not mix.keep_token and kind == SENTENCE and known_text
        answer = _answer(coder, text if again else better, row.end)
        written = coder.data(text)
        due = written if better is None else answer[:-1]
        known, faults = foreseen(written, due) if known_text else (None, [0] * len(written))
        example.add([coder.ids[kind]], 0, branch=branch, sees=seen)
        example.add(written, 0, branch=branch, sees=seen, known=known, faults=faults)
        example.add([coder.ids[REVISION]], 0, branch=branch, sees=seen)
        example.add(answer[:1], mix.decision_weight, branch=branch, sees=seen)
        example.add(answer[1:], 1, branch=branch, sees=seen)
    return example


def foreseen(written: Ids, due: Ids) -> tuple[Ids, list[int]]:
    """What should stand in each place of a sentence, and whether it does, up to the first fault.

    Beyond the first wrong token nothing is right or wrong any more.
    """
    same = 0
    while same < min(len(written), len(due)) and written[same] == due[same]:
        same += 1
    beyond = [IGNORE] * len(written)
    known = [*due[: same + 1], *beyond][: len(written)]
    return known, [*[0] * same, 1, *beyond][: len(written)]


def _answer(coder: Coder, better: str | None, end: bool = False) -> Ids:
    answer = [coder.ids[KEEP]] if better is None else coder.data(better)
    if better is not None and end:
        answer.append(coder.ids[END])
    return [*answer, coder.ids[EOS]]


def examples(
    rng: random.Random, coder: Coder, mix: Mix, sampled: Sequence[Reviewed]
) -> Iterator[Example]:
    """Yield training examples without end."""
    while True:
        own = sampled and rng.random() < mix.sampled
        drawn = rng.choice(sampled) if own else synthetic(rng, mix)
        yield encode(cut_short(drawn, rng, mix.cut), coder, mix)


__all__ = ["Mix", "Reviewed", "Row", "encode", "examples", "judged", "sample_task", "synthetic"]
