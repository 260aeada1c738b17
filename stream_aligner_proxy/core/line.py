"""What stands in line for a verdict: units of text, and what must not overtake them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Usage, Verdict
from stream_aligner_proxy.core.sentences import Sentence


class Splitter(Protocol):
    """What cuts a branch's text into units."""

    @property
    def pending(self) -> int: ...

    @property
    def in_code(self) -> bool: ...

    @property
    def rest(self) -> str: ...

    @property
    def seems_over(self) -> bool: ...

    def feed(self, text: str) -> list[Sentence]: ...

    def flush(self, *, more: bool = False) -> list[Sentence]: ...


class WholeAnswer:
    """A splitter that holds everything until the end: the unit of `whole` mode."""

    in_code = False
    seems_over = False
    rest = ""  # not joined before the end: it is never asked for early

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.pending = 0

    def feed(self, text: str) -> list[Sentence]:
        self._pieces.append(text)
        self.pending += len(text)
        return []

    def flush(self, *, more: bool = False) -> list[Sentence]:
        if more:
            return []  # a part in the middle does not make it whole
        text = "".join(self._pieces)
        self._pieces.clear()
        self.pending = 0
        return [Sentence(text)] if text else []


@dataclass(slots=True)
class Unit:
    """A sentence in line. `text` = `lead` + `core` + `tail`, the outer two being whitespace."""

    text: str
    lead: str
    core: str
    tail: str
    tokens: int
    branch: int
    passed: bool
    review: int | None = None
    verdict: Verdict | None = None
    error: ProxyError | None = None


def unit_of(sentence: Sentence, branch: int, tokens: int, *, passed: bool) -> Unit:
    """A sentence taken apart; what holds only whitespace is passed whatever `passed` says."""
    text = sentence.text
    core = text.strip()
    lead = text[: len(text) - len(text.lstrip())] if core else text
    tail = text[len(lead) + len(core) :]
    return Unit(text, lead, core, tail, tokens, branch, passed or not core)


@dataclass(frozen=True, slots=True)
class Part:
    part: Mapping[str, Any]
    tokens: int


@dataclass(frozen=True, slots=True)
class End:
    finish_reason: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Broken:
    error: ProxyError
