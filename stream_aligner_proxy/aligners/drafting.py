"""What to propose next: where in the draft a row stands, and how likely the draft is right.

The reviewed sentence is almost always the aligner's own output, or nearly so. A proposal is a run
of draft tokens that one forward pass checks; a wrong guess costs width of that pass, never
correctness. After a difference the draft is looked for again (speculative edits): by the last one
to three generated tokens in what is left of the draft (deletions, and the end of an insertion),
else on the guess that one token took the place of one (a substitution).
"""

from collections.abc import Sequence

MAX_NGRAM = 3

# How likely a token of a draft is right before any was seen, and how many tokens' worth this belief
# has beside what is learnt: few, for a decoder pays for each wrong draft that it trusts.
UNTRIED = 0.995
BELIEF = 8.0
# What was learnt is forgotten by halves when it is of more tokens than these.
MEMORY = 2000.0
# How likely the draft goes on where it was found again by 0 (a guess), 1, 2 or 3 tokens; worth two
# tries of the row's own record.
FOUND = (0.5, 0.6, 0.8, 0.9)
# A proposal must promise this much more than none, or the pass is run without: the costs are
# estimates, and a checked row costs some bookkeeping.
WORTH = 1.15


class Trust:
    """How often the drafts of late were right, token by token: shared by the rows of a decoder."""

    def __init__(self) -> None:
        self._right = self._wrong = 0.0

    @property
    def rate(self) -> float:
        return (UNTRIED * BELIEF + self._right) / (BELIEF + self._right + self._wrong)

    def learn(self, right: int, wrong: int) -> None:
        self._right += right
        self._wrong += wrong
        if self._right + self._wrong > MEMORY:
            self._right /= 2
            self._wrong /= 2


class DraftCursor:
    """Follows one row's output through its draft (token ids, the end token included).

    Until a token of it was wrong, the draft is believed as far as drafts are (`trust`); then its
    own record counts, too.
    """

    def __init__(self, draft: Sequence[int], trust: Trust | None = None) -> None:
        self._trust = trust or Trust()
        self._draft = list(draft)
        self._at = 0  # where the next proposal starts
        self._anchor = 0  # after the last draft token known to be in the output
        self._since = 0  # tokens generated since the anchor
        self._found = 0  # how many tokens the place was found by
        self._recent: list[int] = []
        self._right = self._wrong = 0  # draft tokens, where the place was known
        self._hits = self._tries = 0  # places found again

    def propose(self, room: int) -> list[int]:
        """The rest of the draft from where it may go on, at most `room` tokens."""
        return self._draft[self._at : self._at + max(room, 0)]

    def odds(self) -> tuple[float, float]:
        """Chances that the first proposed token is right, and each one after a right one."""
        each = self._trust.rate
        if self._wrong:
            each = min(each, (4 + self._right) / (5 + self._right + self._wrong))
        if not self._since:
            return each, each
        return (2 * FOUND[self._found] + self._hits) / (2 + self._tries), each

    def advance(self, proposed: int, accepted: int, token: int) -> None:
        """Take in a pass: `accepted` of `proposed` tokens were right, then came `token`."""
        draft = self._draft
        guessed = bool(self._since)
        if proposed and guessed:
            self._tries += 1
            self._hits += accepted > 0
        if accepted or not guessed:
            self._right += accepted - guessed
            self._wrong += accepted < proposed
            self._trust.learn(accepted - guessed, accepted < proposed)
        if accepted:
            self._recent.extend(draft[self._at : self._at + accepted])
            self._anchor, self._since = self._at + accepted, 0
        self._recent = [*self._recent, token][-MAX_NGRAM:]
        if not self._since and draft[self._anchor : self._anchor + 1] == [token]:
            self._anchor += 1
            self._at = self._anchor
            return
        self._since += 1
        self._at, self._found = self._find()

    def _find(self) -> tuple[int, int]:
        """Where the draft may go on after the last generated token, and by how many tokens."""
        draft, recent = self._draft, self._recent
        expected = self._anchor + self._since - 1
        best = (0, 0, min(expected + 1, len(draft)))
        for index in range(self._anchor, len(draft)):
            if draft[index] != recent[-1]:
                continue
            length = 1
            while (
                length < len(recent)
                and index >= length
                and draft[index - length] == recent[-1 - length]
            ):
                length += 1
            best = max(best, (length, -abs(index - expected), index + 1))
        return best[2], best[0]


def best_width(
    odds: Sequence[tuple[float, float]],
    lengths: Sequence[int],
    pass_cost: float,
) -> int:
    """How many proposed tokens a pass should check, for the most tokens per cost.

    `odds` and `lengths`: each row's chances and the length of its proposal. A pass over B rows
    costs `pass_cost` + B x (1 + width), in units of one more token; it yields one token a row and
    what it accepts. A wider pass is worth it while the next column yields more per cost than the
    pass has so far. A prompt to be read is no part of this: it costs the same with any width.
    """
    rows = len(odds)
    chances = [first for first, _ in odds]
    base = pass_cost + rows
    width, accepted = 0, 0.0
    while width < max(lengths):
        gain = sum(
            chance for chance, length in zip(chances, lengths, strict=True) if length > width
        )
        if gain * (base + rows * width) <= rows * (rows + accepted):
            break
        accepted += gain
        width += 1
        chances = [chance * each for chance, (_, each) in zip(chances, odds, strict=True)]
    promised = (rows + accepted) * base / (rows * (base + rows * width))
    return width if promised >= WORTH else 0


def groups(lengths: Sequence[int], pass_cost: float) -> list[list[int]]:
    """Which rows share their first pass: indices, each group in the order it came.

    A pass is a rectangle as wide as its longest row, and costs `pass_cost` besides, in tokens. The
    cheapest division puts rows of like length together; it is found from the shortest up.
    """
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    # Over the first n rows of that order: the least cost, and where the last group begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        best.append(
            min((best[start][0] + pass_cost + (end - start) * width, start) for start in range(end))
        )
    found = []
    end = len(order)
    while end:
        start = best[end][1]
        found.append(sorted(order[start:end]))
        end = start
    return sorted(found)
