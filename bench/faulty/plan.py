"""What is to happen to one stream: all of it follows from the seed and the stream's number.

The upstream and the aligner's server read both from the question, so each process makes the same
plan by itself, and one stream can be replayed alone.

Each word that the upstream writes begins with a mark, and the aligner takes the marks away. So any
character of a sentence that reaches a client unreviewed shows.
"""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Api = Literal["chat", "completions", "messages", "responses"]
Mode = Literal["stream", "whole", "off"]
Client = Literal["reads", "slow", "half-closes", "leaves-early", "leaves-midway", "leaves-late"]

MARK = "zz"
_MARKED = re.compile(r"\b[Zz]z(\w)")
_QUESTION = re.compile(r"stream (\d+) of (\d+):")
_PROSE = (
    "river stone lamp garden window letter paper morning silver engine market harbour simple quiet "
    "bright narrow early open across between under behind while because walks carries finds keeps "
    "writes reads turns opens café naïve 東京 many little water field mountain"
)
_WORDS = _PROSE.split()

# Before the first event; the second group is refusals.
HEAD = ("reset-head", "fin-head", "stall-head", "no-http", "stall-first", "json-cut")
REFUSALS = ("429", "429-later", "500", "503", "404", "422", "401")
MIDDLE = (
    *("reset", "reset-in-event", "fin", "stall", "bad-chunk", "bad-json", "bad-utf8"),
    *("no-object", "huge-line", "error-frame", "no-finish"),
)
END = ("reset-after-finish", "fin-after-finish")
# What passes through unread in mode `off`, and is then the client's to find out.
_UNREAD = frozenset(("bad-json", "bad-utf8", "no-object", "huge-line", "no-finish"))
# What an upstream does when it is asked to continue.
REFUSED = ("refuses-prefill", "refuses-all", "begins-again")
ALIGNER = (
    *("500", "503", "400", "bad-json", "no-object", "cut", "reset-head", "stall", "slow"),
    *("unknown-ids", "control-token", "unfinished", "error-frame", "no-ids"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`attempt`: which of the stream's requests to the upstream it is for, from 0; `always`: all
    from there on. `after`: deltas that are sent before it."""

    kind: str
    attempt: int
    after: int
    always: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """`pace`: seconds between the upstream's deltas. `aligner_fault` strikes at review number
    `at_review`, from 0, and after it with `aligner_always`. `leaves_after`: of the client, seconds
    or bytes. `gone_by_reset`: it leaves with RST instead of FIN."""

    number: int
    seed: int
    sentences: tuple[str, ...]
    api: Api
    mode: Mode
    stream: bool
    choices: int
    pace: float
    faults: tuple[Fault, ...]
    continuing: str
    aligner_fault: str
    at_review: int
    aligner_always: bool
    client: Client
    leaves_after: float
    gone_by_reset: bool

    @property
    def question(self) -> str:
        return f"stream {self.number} of {self.seed}:"

    @property
    def model(self) -> str:
        """What the proxy learns of how an upstream continues it remembers for the model: those that
        misbehave have one of their own."""
        if not self.faults and not self.continuing:
            return "common"
        # The proxy is sure of one of its two upstreams that it continues.
        kind = "unsure" if self.continuing or self.number % 2 else "sure"
        return f"{kind}-{self.seed}-{self.number}"

    @property
    def original(self) -> str:
        return "".join(self.sentences)

    @property
    def expected(self) -> str:
        """What a client that gets all of it gets."""
        return self.original if self.mode == "off" else aligned(self.original)

    @property
    def stays(self) -> bool:
        """Whether the client waits for the end."""
        return self.client in ("reads", "slow")

    @property
    def clean(self) -> bool:
        """Whether nothing of its own can keep it from its end."""
        return not self.faults and not self.aligner_fault and self.stays

    def fault(self, attempt: int) -> Fault | None:
        for fault in self.faults:
            if fault.attempt == attempt or (fault.always and attempt > fault.attempt):
                return fault
        return None


def aligned(text: str) -> str:
    """What the aligner makes of it: no marks."""
    return _MARKED.sub(_unmarked, text)


def _unmarked(found: "re.Match[str]") -> str:
    return found[1].upper() if found[0][0] == "Z" else found[1]


def asked(text: str) -> tuple[Plan, str] | None:
    """The plan that the last question in `text` names, and what follows the question."""
    questions = list(_QUESTION.finditer(text))
    if not questions:
        return None
    last = questions[-1]
    return plan(int(last[2]), int(last[1])), text[last.end() :]


@lru_cache(maxsize=8192)
def plan(seed: int, number: int) -> Plan:
    dice = random.Random(f"{seed}:{number}")
    client: Client = dice.choices(
        ("reads", "slow", "half-closes", "leaves-early", "leaves-midway", "leaves-late"),
        (66, 5, 4, 8, 12, 5),
    )[0]
    mode: Mode = dice.choices(("stream", "whole", "off"), (82, 9, 9))[0]
    api: Api = dice.choices(("chat", "completions", "messages", "responses"), (52, 16, 16, 16))[0]
    many = api in ("chat", "completions") and mode == "stream" and dice.random() < 0.12
    long = client == "slow" and mode == "stream"
    fault = dice.random()
    return Plan(
        number=number,
        seed=seed,
        sentences=_sentences(dice, dice.randint(12, 24) if long else dice.randint(1, 6)),
        api=api,
        mode=mode,
        stream=dice.random() < 0.8,
        choices=dice.randint(2, 3) if many else 1,
        pace=dice.choice((0.0, 0.0, 0.0, 0.002, 0.01)),
        faults=_faults(dice, _UNREAD if mode == "off" else ()) if fault < 0.42 else (),
        # Whoever writes on a prompt cannot begin again.
        continuing=(
            dice.choice(REFUSED[: 2 if api == "completions" else 3])
            if 0.42 <= fault < 0.5 and mode == "stream"
            else ""
        ),
        aligner_fault=dice.choice(ALIGNER) if mode != "off" and dice.random() < 0.2 else "",
        at_review=dice.randint(0, 3) if mode == "stream" else 0,
        aligner_always=dice.random() < 0.3,
        client=client,
        leaves_after=dice.random(),
        gone_by_reset=dice.random() < 0.5,
    )


def _faults(dice: random.Random, without: Collection[str]) -> tuple[Fault, ...]:
    faults = []
    for _ in range(dice.choice((1, 1, 1, 2))):
        kinds = dice.choices((HEAD, REFUSALS, MIDDLE, END), (20, 15, 55, 10))[0]
        after = dice.choice((0, 1, 2, 4, 8, 16))
        kind = dice.choice([kind for kind in kinds if kind not in without])
        faults.append(Fault(kind, dice.randint(0, 2), after, dice.random() < 0.25))
    return tuple(faults)


def _sentences(dice: random.Random, count: int) -> tuple[str, ...]:
    made = []
    for number in range(count):
        words = dice.choices(_WORDS, k=dice.randint(3, 9))
        text = " ".join(MARK + word for word in words)
        space = "" if not number else dice.choice((" ", " ", " ", "\n\n"))
        made.append(space + text.capitalize().replace(f" {MARK.capitalize()}", f" {MARK}") + ".")
    return tuple(made)


def deltas(dice: random.Random, text: str) -> list[str]:
    """`text` cut as an upstream may cut it."""
    size = dice.choice((3, 8, 20, 60))
    pieces, at = [], 0
    while at < len(text):
        step = dice.randint(1, size)
        pieces.append(text[at : at + step])
        at += step
    return pieces


def rest(made: Plan, prefix: str) -> str:
    """What the upstream still has to say after `prefix`, which ends with a whole sentence."""
    done = prefix.count(".")
    return "".join(made.sentences[done:])
