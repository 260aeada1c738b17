"""What to propose next: where in the draft a row stands, and how far to trust it.

The reviewed sentence is almost always the aligner's own output, or nearly so. A proposal is a run
of draft tokens that one forward pass checks; every wrong guess costs width of that pass, never
correctness. After a difference the draft is looked for again (speculative edits): by the last one
to three generated tokens in what is left of the draft (deletions, and the end of an insertion),
else on the guess that one token took the place of one (a substitution).
"""

from collections.abc import Sequence

# Measured on one CPU core, a proposed token costs about a thirtieth of a forward pass: a short
# proposal is nearly free, a long wrong one is not. So the width starts at the whole draft, falls to
# WIDTH after a difference, is halved by a guess that was wrong at once and grows fourfold when all
# of it was right. After PATIENCE wrong guesses in a row only a match of two tokens is believed.
WIDTH = 8
PATIENCE = 4
MAX_NGRAM = 3


class DraftCursor:
    """Follows one row's output through its draft (token ids, the end token included)."""

    def __init__(self, draft: Sequence[int]) -> None:
        self._draft = list(draft)
        self._at = 0  # where the next proposal starts
        self._anchor = 0  # after the last draft token known to be in the output
        self._since = 0  # tokens generated since the anchor
        self._width = max(len(self._draft), 1)
        self._misses = 0
        self._recent: list[int] = []

    def propose(self, room: int) -> list[int]:
        """The next guess, at most `room` tokens; may be empty."""
        return self._draft[self._at : self._at + max(min(self._width, room), 0)]

    def advance(self, proposed: int, accepted: int, token: int) -> None:
        """Take in a pass: `accepted` of `proposed` tokens were right, then came `token`."""
        draft = self._draft
        if accepted:
            self._recent.extend(draft[self._at : self._at + accepted])
            self._anchor, self._since = self._at + accepted, 0
        self._recent = [*self._recent, token][-MAX_NGRAM:]
        if proposed:
            self._misses = 0 if accepted else self._misses + 1
            if accepted == proposed:
                self._width *= 4
            elif accepted:
                self._width = WIDTH
            else:
                self._width = max(min(self._width, WIDTH) // 2, 1)
        if (accepted or not self._since) and draft[self._anchor : self._anchor + 1] == [token]:
            self._anchor += 1
            self._at = self._anchor
            return
        self._since += 1
        self._at = self._find()

    def _find(self) -> int:
        """Where the draft may go on after the last generated token; its length for nowhere."""
        draft, recent = self._draft, self._recent
        expected = self._anchor + self._since - 1
        best = (0, 0, 0)
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
        length, _, after = best
        if self._misses >= PATIENCE:
            return after if length > 1 else len(draft)
        return after if length else min(expected + 1, len(draft))
