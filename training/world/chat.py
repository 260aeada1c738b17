"""Whole conversations: what pre-training reads, and the turns that come before a reply.

Most have one user turn. A small share has a system prompt, earlier turns or small talk, so that
conversations do not break the models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.world import lexicon
from training.world.problems import Problem, sample_problem
from training.world.slips import Carelessness, careless_reply
from training.world.split import Split
from training.world.tone import Request, sample_request, write_note

Message = dict[str, str]

SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Hi there.", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! What can I do for you?"),
    ("How are you?", "I am fine, thank you. What can I do for you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks a lot.", "You are welcome!"),
    ("Who are you?", "I am a small demo model. I solve word problems and write short notes."),
    ("What can you do?", "I am a small demo model. I solve word problems and write short notes."),
    ("Goodbye!", "Goodbye! Have a lovely day."),
    ("Bye.", "Goodbye! Have a lovely day."),
)
UNKNOWN_REPLY = "I am sorry, I do not know that. I solve word problems and write short notes."
UNKNOWN = (
    "What is the capital of {a}?",
    "Who wrote {a}?",
    "Tell me about {a}.",
    "Why is the {a} blue?",
    "Can you write a poem about {a}?",
    "What do you think of {a}?",
    "Explain {a} to me.",
    "Where is {a}?",
    "Write code for {a}.",
)
THINGS = (
    "France", "the sky", "Hamlet", "a whale", "music", "the moon", "Peru", "sorting", "love",
    "physics", "a computer", "Berlin", "tea", "the sea", "history", "Python", "winter", "football",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns before a reply, and the task that the last user turn sets (None = small talk)."""

    messages: tuple[Message, ...]
    task: Problem | Request | None
    reply: str = ""


def small_talk(rng: random.Random) -> tuple[str, str]:
    """Return one harmless question and its reply."""
    if rng.random() < 0.5:
        return rng.choice(SMALL_TALK)
    return rng.choice(UNKNOWN).format(a=rng.choice(THINGS)), UNKNOWN_REPLY


def write_reply(
    task: Problem | Request, rng: random.Random, how: Carelessness | None, rude: float
) -> str:
    """Write a reply to a task; without `how`, a right one."""
    if isinstance(task, Problem):
        return task.reply if how is None else careless_reply(task, rng, how)
    return write_note(task, rng, rude)


def sample_task(rng: random.Random, split: Split, notes: float) -> Problem | Request:
    """Draw a problem, or (with probability `notes`) a request for a note."""
    if rng.random() < notes:
        return sample_request(rng, split)
    return sample_problem(rng, split)


def sample_conversation(
    rng: random.Random,
    split: Split,
    *,
    how: Carelessness | None = None,
    rude: float = 0.0,
    notes: float = 0.25,
) -> Conversation:
    """Draw the turns before a reply, and the task; small talk comes with its reply."""
    messages: list[Message] = []
    if rng.random() < 0.08:
        messages.append({"role": "system", "content": rng.choice(lexicon.SYSTEMS)})
    if rng.random() < 0.08:
        if rng.random() < 0.5:
            asked, said = small_talk(rng)
        else:
            earlier = sample_task(rng, split, notes)
            asked, said = earlier.question, write_reply(earlier, rng, how, rude)
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": said})
    if rng.random() < 0.03:
        asked, said = small_talk(rng)
        messages.append({"role": "user", "content": asked})
        return Conversation(tuple(messages), None, said)
    task = sample_task(rng, split, notes)
    messages.append({"role": "user", "content": task.question})
    return Conversation(tuple(messages), task, write_reply(task, rng, how, rude))


def drill(rng: random.Random) -> str:
    """Return a line of plain sums: dense practice for the arithmetic of the problems."""
    said = []
    for _ in range(rng.randint(4, 8)):
        op = rng.choices("+-x/", (44, 40, 10, 6))[0]
        if op == "+":
            a = rng.randint(2, 188)
            b = rng.randint(2, min(116 if rng.random() < 0.3 else 99, 199 - a))
            a, b = (b, a) if rng.random() < 0.2 else (a, b)
            c = a + b
        elif op == "-":
            a = rng.randint(5, 199)
            b = rng.randint(2, min(99, a - 2))
            c = a - b
        elif op == "x":
            a, b = rng.randint(2, 4), rng.randint(4, 49)
            b, a = (b, a) if rng.random() < 0.5 else (rng.randint(4, 99), 2)
            c = a * b
        else:
            c = rng.randint(2, 99)
            a, b = 2 * c, 2
        said.append(f"{a} {op} {b} = {c}.")
    return " ".join(said)
