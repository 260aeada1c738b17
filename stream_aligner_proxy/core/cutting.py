"""What cuts a branch's text into units: sentences, merged sentences, or the whole answer."""

from typing import Protocol

from stream_aligner_proxy.core.records import Mode, Policy
from stream_aligner_proxy.core.sentences import Sentence, SentenceSplitter


class Splitter(Protocol):
    """Feed it text; it returns each unit once, as early as it is certain."""

    @property
    def pending(self) -> int:
        """How many characters wait inside."""
        ...

    @property
    def in_code(self) -> bool:
        """Whether what comes next stands in a fenced code block."""
        ...

    @property
    def rest(self) -> str:
        """What waits inside."""
        ...

    @property
    def seems_over(self) -> bool:
        """Whether what waits inside is most likely a whole unit."""
        ...

    def feed(self, text: str) -> list[Sentence]: ...

    def flush(self, *, more: bool = False) -> list[Sentence]:
        """The rest; with `more`, text goes on after something that is not text."""
        ...


class WholeAnswer:
    """Holds everything until the end: the unit of `whole` mode."""

    in_code = False
    seems_over = False

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.pending = 0

    @property
    def rest(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

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


class Merged:
    """Sentences of a splitter, each joined with the next until there are `least` characters.

    Whitespace around the text does not count. A line of code, a part and the end let go of what is
    held; a merged sentence is never longer than `most`. Which sentences are merged follows from
    the text alone, so it does not depend on chunking.
    """

    def __init__(self, splitter: Splitter, *, least: int, most: int) -> None:
        self._splitter = splitter
        self._least = least
        self._most = most
        self._held = ""

    @property
    def pending(self) -> int:
        return len(self._held) + self._splitter.pending

    @property
    def in_code(self) -> bool:
        return self._splitter.in_code

    @property
    def rest(self) -> str:
        return self._held + self._splitter.rest

    @property
    def seems_over(self) -> bool:
        return self._splitter.seems_over and self._long_enough(self.rest)

    def feed(self, text: str) -> list[Sentence]:
        return self._merge(self._splitter.feed(text))

    def flush(self, *, more: bool = False) -> list[Sentence]:
        return [*self._merge(self._splitter.flush(more=more)), *self._let_go()]

    def _merge(self, sentences: list[Sentence]) -> list[Sentence]:
        merged: list[Sentence] = []
        for sentence in sentences:
            if sentence.kind == "code":
                merged += [*self._let_go(), sentence]
                continue
            if len(self._held) + len(sentence.text) > self._most:
                merged += self._let_go()
            self._held += sentence.text
            if self._long_enough(self._held):
                merged += self._let_go()
        return merged

    def _long_enough(self, text: str) -> bool:
        return len(text) >= self._least and len(text.strip()) >= self._least

    def _let_go(self) -> list[Sentence]:
        held, self._held = self._held, ""
        return [Sentence(held)] if held else []


def splitter_of(policy: Policy, committed: str) -> Splitter:
    """The splitter of a branch that continues `committed`, perhaps inside a fence or a line."""
    if policy.mode is Mode.WHOLE:
        return WholeAnswer()
    splitter = SentenceSplitter(max_chars=policy.max_sentence_chars, after=committed)
    if not policy.merge_below:
        return splitter
    return Merged(splitter, least=policy.merge_below, most=policy.max_sentence_chars)
