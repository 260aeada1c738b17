"""Token accounting for one reply over its branches (rule 11).

The upstream's own counts are used wherever it gives them: a continued branch's prompt holds the
committed text, so the difference between its prompt and the first branch's is the exact size of
what was committed, in the upstream's tokens. Until that is known, kept text counts what arrived
for it and rewritten text is estimated by the reply's own ratio of characters to tokens. Against
the client's limit a rewritten text counts by a cautious bound instead: too many estimated tokens
end a reply a little early, too few would give the client more than it asked for.
"""

import re
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Any

from stream_aligner_proxy.core.records import Usage

# Before any text was seen.
_CHARS_PER_TOKEN = 4.0
# No common tokenizer needs more for text it knows: four letters, one digit or one other sign; white
# space goes with the word after it, and is a token of its own before anything else.
_PIECE = re.compile(r"[A-Za-z]{1,4}|[^\sA-Za-z]|\n|[^\S\n](?![A-Za-z])")
# Chinese and Japanese put no white space between words: each of their characters may be the last.
_WORD_END = re.compile(r"[ \n]|(?<=[\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff65])")


@dataclass(frozen=True, slots=True)
class BranchCount:
    """What is counted of one branch, to be put back where it goes on."""

    prompt: int | None
    measures: bool
    branches: int
    at_open: int
    aside_at_open: int
    seen: int
    taken: int
    ledger: tuple[tuple[int, int], ...]

    @property
    def untaken(self) -> int:
        return max(0, self.seen - self.taken)


class Meter:
    """`limit` is the most completion tokens the client asked for; None for no limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.delivered = 0  # committed so far, exact up to the last measured branch
        self.aside = 0  # delivered beside the text: reasoning, tool calls; in no prefix
        self.resent = 0  # prefix tokens sent again with continuations
        self._margin = 0  # cautious bound of rewritten text, over its estimate in `delivered`
        self._prompt: int | None = None  # of the first branch
        self._branch_prompt: int | None = None
        self._measures = True  # the running branch's prompt holds the committed text and no more
        self._branches = 0
        self._aside_at_open = 0
        self._at_open = 0  # `delivered` when the running branch was opened
        self._seen = 0  # tokens arrived on the running branch
        self._taken = 0  # of these, tokens of units taken off it
        self._ledger: deque[list[int]] = deque()  # [characters, tokens] not yet taken
        self._chars = 0
        self._tokens = 0

    def open_branch(self, *, measures: bool = True) -> int | None:
        """Start counting a new branch; the `max_tokens` to ask for.

        `measures`: its prompt will be the first one's and the committed text, and nothing else.
        """
        first = self._branches == 0
        self._branches += 1
        self._branch_prompt = None
        self._measures = measures or first
        self._at_open = self.delivered
        self._aside_at_open = self.aside
        if not first:
            self.resent += self.delivered
        self._seen = self._taken = 0
        self._ledger.clear()
        return self.limit if first else self.remaining

    def park(self) -> BranchCount:
        """The running branch's counts, for `unpark`."""
        ledger = tuple((characters, tokens) for characters, tokens in self._ledger)
        return BranchCount(
            self._branch_prompt,
            self._measures,
            self._branches,
            self._at_open,
            self._aside_at_open,
            self._seen,
            self._taken,
            ledger,
        )

    def unpark(self, count: BranchCount) -> None:
        """That branch runs again, and none in between has counted."""
        self._branch_prompt, self._measures = count.prompt, count.measures
        self._branches = count.branches
        self._at_open, self._aside_at_open = count.at_open, count.aside_at_open
        self._seen, self._taken = count.seen, count.taken
        self._ledger = deque([characters, tokens] for characters, tokens in count.ledger)

    @property
    def remaining(self) -> int | None:
        """Tokens that may still be delivered; None without a limit."""
        if self.limit is None:
            return None
        return max(0, self.limit - self.delivered - self.aside - self._margin)

    @property
    def overrun(self) -> bool:
        """Whether the running branch wrote more than the client asked for.

        The first branch was asked for no more than that: there, tokens guessed from the number of
        deltas are no reason to cut it short.
        """
        if self.limit is None or (self._branches == 1 and self._branch_prompt is None):
            return False
        return self._at_open + self.aside + self._seen > self.limit

    @property
    def untaken(self) -> int:
        """Tokens that arrived on the running branch and belong to no unit yet taken."""
        return max(0, self._seen - self._taken)

    def prompt(self, tokens: int) -> None:
        """The running branch's prompt size, as the upstream counts it."""
        if self._branch_prompt is not None or not self._measures:
            return
        self._branch_prompt = tokens
        if self._branches == 1:
            self._prompt = tokens
        elif self._prompt and tokens > self._prompt:  # a server may tell 0 for "not told"
            correction = tokens - self._prompt - self._at_open
            self._at_open += correction
            self.delivered += correction
            self.resent += correction
            self._margin = 0

    def arrived(self, characters: int, tokens: int) -> None:
        """Text of the running branch came in: `characters` of it are new, for `tokens` tokens."""
        self._seen += tokens
        self._chars += characters
        self._tokens += tokens
        if not characters and self._ledger:
            self._ledger[-1][1] += tokens
        else:
            self._ledger.append([characters, tokens])

    def take(self, characters: int) -> int:
        """Tokens of the next `characters` of the running branch.

        A token across the border counts for the earlier unit. Where several tokens came at once,
        those that may lie on either side count for both.
        """
        tokens = 0
        while characters > 0 and self._ledger:
            entry = self._ledger[0]
            if entry[0] > characters:
                share, rest = entry[1], 0
                if entry[1] > 1:
                    share = -(-entry[1] * characters // entry[0])
                    rest = -(-entry[1] * (entry[0] - characters) // entry[0])
                tokens += share
                entry[0], entry[1] = entry[0] - characters, rest
                break
            tokens += entry[1]
            characters -= entry[0]
            self._ledger.popleft()
        self._taken += tokens
        return tokens

    def kept(self, text: str, tokens: int, *, cut: bool) -> None:
        """Text of the running branch was committed; `tokens` came for it, or (`cut`) for more."""
        if cut:
            tokens = min(tokens, self._estimate(text))
        self.delivered += tokens
        if self._branch_prompt is None:
            # The upstream does not count as it goes, and one delta may hold many tokens.
            self._margin += max(0, self._bound(text) - tokens)

    def rewritten(self, text: str) -> None:
        """Text that no branch wrote was committed."""
        estimate = self._estimate(text)
        self.delivered += estimate
        self._margin += self._bound(text) - estimate

    def _bound(self, text: str) -> int:
        return max(sum(1 for _ in _PIECE.finditer(text)), self._estimate(text))

    def _estimate(self, text: str) -> int:
        return self._tokens_of(len(text))

    def _tokens_of(self, characters: int) -> int:
        """By the reply's own ratio."""
        ratio = self._chars / self._tokens if self._chars and self._tokens else _CHARS_PER_TOKEN
        return -int(-characters // ratio)

    def cut(self, text: str) -> str:
        """The longest beginning of `text`, whole words only, sure to fit what remains."""
        remaining = self.remaining
        if remaining is None or self._bound(text) <= remaining:
            return text
        ends = [found.start() for found in _WORD_END.finditer(text)]
        # By bisection: each bound reads the whole text, and a whole answer can be long.
        fitting = bisect_right(ends, remaining, key=lambda end: self._bound(text[:end]))
        return text[: ends[fitting - 1]].rstrip() if fitting else ""

    def sure_to_fit(self, text: str, start: int, pieces: int) -> tuple[int, int]:
        """How much of a text that still grows will fit however it goes on: whole words only.

        `start` and `pieces` are what was answered for a shorter beginning of it (at first 0, 0), so
        that each call reads only what is new. `cut` never gives less for the whole text.
        """
        if self.remaining is None:
            return len(text), 0
        end = start
        for found in _WORD_END.finditer(text, start + 1):
            end = found.start()
        more = pieces + sum(1 for _ in _PIECE.finditer(text, start, end))
        if max(more, self._tokens_of(end)) > self.remaining:
            return start, pieces
        return end, more

    def usage(self, final: Usage | None, *, rewritten: bool) -> Usage | None:
        """What was delivered, or None where the upstream never told the prompt's size.

        `final` is the last branch's own report if that branch ran to its end; `rewritten` says
        that text of the last branch was changed, so its completion count is not what was
        delivered; but it tells how many tokens the arrived text really had.
        """
        if final is not None:
            self.prompt(final.prompt_tokens)
            if self._branches == 1 and not rewritten:
                return final
        prompt = self._prompt
        if prompt is None:
            if self._branch_prompt is None:
                return None
            prompt = max(0, self._branch_prompt - self._at_open)
        before = self._at_open + self._aside_at_open
        if final is not None and not rewritten:
            return Usage(prompt, before + final.completion_tokens)
        text, aside = self.delivered - self._at_open, self.aside - self._aside_at_open
        if final is not None and self._seen and final.completion_tokens > aside:
            text = round(text * (final.completion_tokens - aside) / self._seen)
        details: dict[str, Any] = {}
        if final is not None and self._branches == 1:
            # Those of the prompt and the thoughts hold; a total of theirs does not.
            details = {k: v for k, v in final.details.items() if k != "total_tokens"}
        return Usage(prompt, self._at_most_asked(before + text + aside), details)

    def guess(self, prompt_chars: int) -> Usage:
        """Where the upstream never told the prompt's size: estimated from its characters."""
        completion = self._at_most_asked(self.delivered + self.aside)
        return Usage(self._tokens_of(prompt_chars), completion)

    def _at_most_asked(self, tokens: int) -> int:
        """An estimate, held to the limit: more than was asked for is not delivered."""
        return tokens if self.limit is None else min(tokens, self.limit)
