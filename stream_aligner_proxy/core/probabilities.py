"""Log probabilities of text that stays as the upstream wrote it.

They arrive token by token, beside the text or ahead of it. Each token belongs where it begins, so
one that reaches over the border of two sentences goes with the first. What is handed out for a
piece of text is nothing but the tokens that make it up: where they do not add up to it (a server
that tells other tokens than it writes, a continuation whose beginning was dropped), there is none.
"""

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Entry = Mapping[str, Any]  # of OpenAI's `logprobs.content`


class _Token(NamedTuple):
    """`text` holds the characters that end in it: of one cut in half, the second half."""

    start: int
    text: str
    entry: Entry


class _Branch:
    def __init__(self) -> None:
        self.tokens: deque[_Token] = deque()
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, entry: Entry) -> None:
        text = self._decoder.decode(_bytes(entry))
        self.tokens.append(_Token(self._characters, text, entry))
        self._characters += len(text)


class Probabilities:
    """Of one reply, by branch; places are characters of what the branch wrote."""

    def __init__(self) -> None:
        self._branches: dict[int, _Branch] = {}

    def arrived(self, branch: int, entries: Sequence[Entry]) -> None:
        """The tokens that a branch tells next."""
        of_branch = self._branches.setdefault(branch, _Branch())
        for entry in entries:
            of_branch.add(entry)

    def take(self, branch: int, start: int, text: str) -> tuple[Entry, ...]:
        """The tokens of `text`, which begins at `start`; all before its end are let go of."""
        if (of_branch := self._branches.get(branch)) is None:
            return ()
        tokens, end = of_branch.tokens, start + len(text)
        found: list[_Token] = []
        while tokens and tokens[0].start < end:
            token = tokens.popleft()
            if token.start >= start:
                found.append(token)
        if not found:
            return ()
        rest = text[found[0].start - start :]
        said = "".join(token.text for token in found)
        return tuple(token.entry for token in found) if said.startswith(rest) else ()

    def take_all(self, branch: int) -> tuple[Entry, ...]:
        """All that have arrived."""
        if (of_branch := self._branches.get(branch)) is None:
            return ()
        entries = tuple(token.entry for token in of_branch.tokens)
        of_branch.tokens.clear()
        return entries


def _bytes(entry: Entry) -> bytes:
    told = entry.get("bytes")
    if isinstance(told, list) and all(isinstance(b, int) and 0 <= b < 256 for b in told):
        return bytes(told)
    token = entry.get("token")
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""
