"""What stands in line for a verdict: units of text, and what must not overtake them."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Usage, Verdict
from stream_aligner_proxy.core.sentences import Sentence

# Parts (tool-call pieces, reasoning) that may wait behind a sentence.
MAX_ITEMS = 64


@dataclass(slots=True)
class Unit:
    """A sentence in line. `text` = `lead` + `core` + `tail`, the outer two being whitespace.

    `told` is the beginning of what the aligner makes of `core`, as far as it has told.
    `skipped`: passed although it is prose, because `max_reviews` were made. `start`: see
    `Committed`.
    """

    text: str
    lead: str
    core: str
    tail: str
    tokens: int
    branch: int
    passed: bool
    start: int = 0
    skipped: bool = False
    review: int | None = None
    told: str = ""
    verdict: Verdict | None = None
    error: ProxyError | None = None

    @property
    def new(self) -> str | None:
        """What the verdict makes of `core`: the same text, "" or another; None without one."""
        if self.verdict is None:
            return None
        # The same text, whitespace apart, is no change, whatever the aligner calls it.
        return self.core if self.verdict.kept else (self.verdict.replacement or "").strip()

    @property
    def may_be_kept(self) -> bool:
        """As far as is known: what follows it can be reviewed on the assumption that it is."""
        return self.new in (None, self.core) and self.core.startswith(self.told)

    def forget_review(self) -> None:
        self.review = self.verdict = self.error = None
        self.told = ""


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


Item = Unit | Part | End | Broken


class Line:
    """The items in order. `length` counts the units among them, `reviewable` those of these that
    are not passed, which is settled when they are added."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self.length = self.reviewable = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def head(self) -> Item:
        return self._items[0]

    @property
    def end(self) -> End | None:
        """The end of the branch, where it stands in line."""
        last = self._items[-1] if self._items else None
        return last if isinstance(last, End) else None

    def units(self) -> Iterator[Unit]:
        return (item for item in self._items if isinstance(item, Unit))

    def add(self, item: Item) -> None:
        self._items.append(item)
        if isinstance(item, Unit):
            self.length += 1
            self.reviewable += not item.passed

    def take(self) -> None:
        """Remove the head."""
        item = self._items.popleft()
        if isinstance(item, Unit):
            self.length -= 1
            self.reviewable -= not item.passed

    def park(self) -> tuple[Item, ...]:
        """Remove everything, to be put back by `add`; no unit keeps its review."""
        items = tuple(self._items)
        for unit in self.units():
            unit.forget_review()
        self._items.clear()
        self.length = self.reviewable = 0
        return items

    def clear(self) -> int:
        """Remove everything; the upstream's tokens that it held."""
        tokens = sum(item.tokens for item in self._items if isinstance(item, Unit | Part))
        self._items.clear()
        self.length = self.reviewable = 0
        return tokens

    def clear_behind(self, unit: Unit) -> int:
        """Remove the text and parts behind a unit in line; the tokens that they held.

        How the branch ended stays: its usage is still good to know.
        """
        items = list(self._items)
        at = next(place for place, item in enumerate(items) if item is unit) + 1
        stays: list[Item] = [item for item in items[at:] if isinstance(item, End | Broken)]
        tokens = sum(item.tokens for item in items[at:] if isinstance(item, Unit | Part))
        self._items = deque(items[:at] + stays)
        self.length = sum(isinstance(item, Unit) for item in items[:at])
        self.reviewable = sum(not unit.passed for unit in self.units())
        return tokens
