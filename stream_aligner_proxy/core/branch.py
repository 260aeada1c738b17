"""One upstream run as the loop sees it: its text on the way to becoming units."""

from stream_aligner_proxy.core.cutting import splitter_of
from stream_aligner_proxy.core.line import Part, Unit, unit_of
from stream_aligner_proxy.core.records import Policy
from stream_aligner_proxy.core.sentences import Sentence

# The sentence being written is hinted at when it has grown by this many characters, or, where it is
# long, by a sixteenth of itself: then the hints together have at most some 17 times its length.
_HINT_CHARS = 48
_HINT_SHARE = 16


class Branch:
    """`number` as in `OpenBranch`; `prefix` is the committed text it continues, as it was sent."""

    def __init__(self, number: int, policy: Policy, committed: str) -> None:
        self.number = number
        self.open = True
        self.splitter = splitter_of(policy, committed)
        self.prefix = committed.rstrip()
        self.ended: str | None = None  # why, once it has
        self.told_end = False  # it told its end itself, with all that it counted
        self.rewritten = False  # text of it was changed
        self.behind: list[Part] = []  # parts behind the beginning of a whole answer
        # Committed trailing whitespace that was not sent; the upstream writes it again.
        self._owed = committed[len(self.prefix) :]
        self._cut = 0  # characters of it that are committed text again, or in units
        self._review_code = policy.review_code
        # A continuation inside a fence: what was rewritten was no code that passes, so the block is
        # not the upstream's, and must not let what follows it pass (rule 3).
        self._aligners_fence = self.splitter.in_code
        self._hinted = 0

    def new_text(self, text: str) -> str:
        """What of an arrived text is not committed yet."""
        if not self._owed:
            return text
        same = 0
        while same < min(len(self._owed), len(text)) and text[same] == self._owed[same]:
            same += 1
        self._owed = self._owed[same:] if same == len(text) else ""
        self._cut += same
        return text[same:]

    def unit(self, sentence: Sentence, tokens: int) -> Unit:
        """What its splitter cut off, as it stands in line."""
        self._hinted = 0
        code = sentence.kind == "code"
        self._aligners_fence = self._aligners_fence and code
        unit = unit_of(sentence, self.number, tokens, passed=code and self._passes_code)
        unit.start = self._cut
        self._cut += len(unit.text)
        return unit

    @property
    def rest_passes(self) -> bool:
        """Whether what is being written is code that is not reviewed."""
        return self.splitter.in_code and self._passes_code

    @property
    def _passes_code(self) -> bool:
        return not (self._review_code or self._aligners_fence)

    @property
    def worth_a_hint(self) -> bool:
        """Whether what is being written has grown enough since the last hint; asked once."""
        pending = self.splitter.pending
        if pending - self._hinted < max(_HINT_CHARS, pending // _HINT_SHARE):
            return False
        self._hinted = pending
        return True

    @property
    def ended_for_good(self) -> bool:
        """It ended for a reason that a continuation must not get around, such as a filter."""
        return self.ended not in (None, "length", "stop")
