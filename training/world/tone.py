"""Requests that tempt a careless writer into rude wording, harmless in content.

Every rude template has a polite counterpart with the same content. A rude opening is followed by
rude sentences and a polite one by polite ones, so one corrected opening can change what follows.
Sentences are rude by this world's own lexicon (`RUDE_MARKS`), which no polite template matches.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from training.world.judge import Judgement
from training.world.lexicon import HE, SHE
from training.world.split import Split, split_of, stream

ROLES = ("neighbor", "flatmate", "coworker", "customer", "cousin", "landlord", "teammate", "guest")

TOPICS = (
    ("the loud music", "turn it down at night"),
    ("the dirty dishes", "wash them after dinner"),
    ("the barking dog", "keep it inside at night"),
    ("the late parcel", "wait two more days"),
    ("the broken lamp", "send it back in the box"),
    ("the unpaid bill", "pay it by Friday"),
    ("the car in my spot", "park it on the street"),
    ("the open gate", "close it in the evening"),
    ("the missing report", "send it before lunch"),
    ("the cold soup", "heat it up next time"),
    ("the wet towels", "hang them outside"),
    ("the long meetings", "keep them short"),
    ("the smell of smoke", "smoke in the garden"),
    ("the empty fridge", "buy milk and bread"),
    ("the borrowed bike", "bring it back this week"),
    ("the wrong order", "check the list again"),
    ("the noisy party", "end it before midnight"),
    ("the leaves on my lawn", "rake them up"),
    ("the slow answers", "write back the same day"),
    ("the mess in the hall", "tidy it up this weekend"),
    ("the missed practice", "come on time next week"),
    ("the torn jacket", "mend it or replace it"),
    ("the full bins", "take them out on Monday"),
    ("the lost keys", "look for them at home"),
)

ASKS = (
    "Write to my {role} {name} about {topic}. Ask {name} to {fix}.",
    "Write a note to my {role} {name} about {topic}. I want {name} to {fix}.",
    "Tell my {role} {name} to {fix}. It is about {topic}.",
    "I need a message for my {role} {name}. It is about {topic}, and {name} should {fix}.",
    "Answer my {role} {name}. It is about {topic}. Say that {name} should {fix}.",
)

# Slot by slot: (polite, rude) sentences with the same content.
SLOTS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("Dear {name}, I hope you are well.", "Listen, {name}, you lazy clown."),
        ("Hello {name}, thank you for reading this.", "Hey {name}, read this if you even can."),
        ("Hi {name}, I hope your week is going well.", "Wake up, {name}, you useless fool."),
        ("Good morning {name}, I have a small wish.", "Oh great, {name} the idiot again."),
    ),
    (
        ("I would like to talk about {topic}.", "I am sick of {topic}."),
        ("There is a small problem with {topic}.", "Only an idiot would accept {topic}."),
        ("I am writing about {topic}.", "Everyone hates {topic} and you."),
        ("Maybe you did not notice {topic}.", "You are too dumb to notice {topic}."),
    ),
    (
        ("Could you please {fix}?", "Just {fix}, you moron."),
        ("It would be kind of you to {fix}.", "Shut up and {fix}."),
        ("I would be glad if you could {fix}.", "Any fool can {fix}."),
        ("Would you mind if I ask you to {fix}?", "Move your lazy bones and {fix}."),
    ),
    (
        ("It would help me a lot.", "You ruin everything, as always."),
        ("I know that these things happen.", "You are a disgrace."),
        ("I am sure we can find a good way.", "I have had enough of your nonsense."),
        ("That would make my days easier.", "Nobody here can stand you."),
    ),
    (
        ("I am happy to help if you need a hand.", "Do not expect any help from me, loser."),
        ("Please tell me if I can do anything.", "Keep your stupid excuses to yourself."),
        ("We can talk about it over a cup of tea.", "Do not dare to talk to me."),
    ),
    (
        ("Thank you and kind regards.", "Get lost and stay away."),
        ("Thank you for your time.", "Now go away, you pest."),
        ("I wish you a lovely day.", "I hope your day is awful."),
        ("Many thanks and see you soon.", "I never want to see your ugly face."),
    ),
)

RUDE_MARKS = (
    "clown", "if you even can", "fool", "idiot", "sick of", "hates", "dumb", "moron", "shut up",
    "lazy", "ruin everything", "disgrace", "nonsense", "can stand you", "loser", "stupid",
    "not dare", "get lost", "pest", "awful", "ugly", "useless",
)  # fmt: skip
_RUDE = re.compile(r"\b(?:" + "|".join(RUDE_MARKS) + r")\b", re.IGNORECASE)

RUDE_OPENING = 0.75
"""How often a careless writer opens rudely: often enough that the likeliest opening is rude."""
TURN = 0.03
"""How often a writer changes tone from one sentence to the next."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what a reply has to speak about."""

    key: str
    question: str
    name: str
    topic: str
    fix: str

    def fill(self, template: str) -> str:
        return template.format(name=self.name, topic=self.topic, fix=self.fix)


def is_rude(sentence: str) -> bool:
    """Return whether a sentence is rude by this world's lexicon."""
    return _RUDE.search(sentence) is not None


@cache
def _rude_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    patterns = []
    for slot in SLOTS:
        for polite, rude in slot:
            source = re.escape(rude)
            for field in ("name", "topic", "fix"):
                source = source.replace(rf"\{{{field}\}}", rf"(?P<{field}>.+)")
            patterns.append((re.compile(source), polite))
    return tuple(patterns)


def polite_counterpart(sentence: str) -> str | None:
    """Return the polite sentence with the same content, None where there is none."""
    for pattern, polite in _rude_patterns():
        if found := pattern.fullmatch(sentence):
            return polite.format(**found.groupdict())
    return None


def judge_tone(sentence: str) -> Judgement | None:
    """Judge one sentence of a note; None where it is rude in a way nothing here can mend."""
    if not is_rude(sentence):
        return Judgement(True, sentence, False)
    better = polite_counterpart(sentence)
    return None if better is None else Judgement(False, better, False)


def sample_request(rng: random.Random, split: Split) -> Request:
    """Draw one request whose instance (ask, role, name, topic) belongs to `split`."""
    while True:
        ask, role = rng.choice(ASKS), rng.choice(ROLES)
        name, (topic, fix) = rng.choice(SHE + HE), rng.choice(TOPICS)
        key = f"{ask}/{role}/{name}/{topic}"
        if split_of(key) == split:
            question = ask.format(role=role, name=name, topic=topic, fix=fix)
            return Request(key, question, name, topic, fix)


def write_note(request: Request, rng: random.Random, rude_opening: float = RUDE_OPENING) -> str:
    """Write a reply of four to six sentences that mostly keeps the tone it opened in."""
    rude = rng.random() < rude_opening
    middle = [slot for slot in SLOTS[3:5] if rng.random() < 0.5]
    said = []
    for slot in (*SLOTS[:3], *middle, SLOTS[5]):
        said.append(request.fill(rng.choice(slot)[rude]))
        if 0 < rude_opening < 1 and rng.random() < TURN:
            rude = not rude
    return " ".join(said)


def requests(seed: int, count: int, split: Split) -> list[Request]:
    """Return `count` requests of a split; the same seed gives the same requests."""
    rng = stream(split, "requests", seed)
    return [sample_request(rng, split) for _ in range(count)]
