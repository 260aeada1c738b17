"""Where a told continuation meets the text it shall continue. Pure.

An upstream that was only asked to go on may repeat the last words, begin with a remark of its own,
lose the space at the seam, repeat the whole text, or begin the answer again. So the first text is
held until one of these has shown itself, or none can any more.
"""

import re
from difflib import SequenceMatcher

# Enough to tell a fresh start from a continuation, and most of a sentence: the reviewer waits for
# the whole of it anyway. Characters.
ENOUGH = 100
# Where the end of the text seems to be repeated, it is waited for so long.
MOST = 400
# A shorter overlap may be chance, unless it is all of the last sentence: characters, and words.
_LEAST_OVERLAP = (8, 3)
# How much of two beginnings is compared, and how alike they are when one is the other once more:
# all in all, or where they also begin with the same characters.
_BEGINNING = 80
_ALIKE = 0.9
_ALIKE_AND_SAME = (0.7, 6)
_QUOTES = str.maketrans("“”„«»‘’`", '"""""\'\'\'')
_REMARK = re.compile(
    r"(?:sure|certainly|of course|okay|ok|understood|continuing|here(?:'s| is))\b"
    r"[^\n]{0,120}:\s*\n+",
    re.IGNORECASE,
)
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%…\"'")


class BeganAgain(Exception):
    """The new text is the answer's beginning once more."""


class Seam:
    """Use once: `feed` what comes, `feed("", last=True)` at the end.

    What is given out begins where `prefix` ends. `began`: how the upstream began its own answer; in
    `prefix` that may have been corrected. Raises `BeganAgain`.
    """

    def __init__(self, prefix: str, began: str = "") -> None:
        self._prefix = prefix
        self._began = began
        self._held = ""
        self.open = False  # everything is passed on from now on
        self.repeated = False  # it wrote the whole prefix once more: continued, or begun again

    def feed(self, text: str, *, last: bool = False) -> str:
        if self.open:
            return text
        self._held += text
        if not last and self._unsure():
            return ""
        self.open = True
        held, self._held = self._held, ""
        return self._joined(held) if held.strip() else ""

    def _unsure(self) -> bool:
        held = self._held.lstrip()
        if len(held) < ENOUGH:
            return True
        if len(held) < len(self._prefix) and self._prefix.startswith(held):
            return True  # all of it is being repeated, or it begins again: its end will tell
        return len(held) < MOST and _repeats_end(self._prefix, held)

    def _joined(self, held: str) -> str:
        space = held[: len(held) - len(held.lstrip())]
        new = held.lstrip()
        if remark := _REMARK.match(new):
            space, new = "", new[remark.end() :]
        if new.startswith(self._prefix):
            self.repeated = True
            return new[len(self._prefix) :]
        if cut := _overlap(self._prefix, new):
            space, new = "", new[cut:]
            return new
        if _begins_again(self._prefix, new) or _begins_again(self._began, new):
            raise BeganAgain
        return (space or _space_between(self._prefix, new)) + new


def _plain(text: str) -> tuple[str, list[int]]:
    """The text with each run of white space as one space and plain quotes; for each character of
    it, where its original ends."""
    plain: list[str] = []
    ends: list[int] = []
    for index, sign in enumerate(text.translate(_QUOTES)):
        if sign.isspace() and plain and plain[-1] == " ":
            ends[-1] = index + 1
        else:
            plain.append(" " if sign.isspace() else sign)
            ends.append(index + 1)
    return "".join(plain), ends


def _repeats_end(prefix: str, held: str) -> bool:
    """Whether `held` may be the beginning of a repetition of the prefix's end."""
    tail = _plain(prefix[-2 * MOST :])[0]
    begun = _plain(held)[0].rstrip()
    return begun in tail and not tail.endswith(begun)


def _overlap(prefix: str, new: str) -> int:
    """How many characters at the beginning of `new` repeat the end of the prefix."""
    tail = _plain(prefix[-2 * MOST :])[0].strip()
    begun, ends = _plain(new)
    for length in range(min(len(tail), len(begun)), 0, -1):
        if not tail.endswith(begun[:length]):
            continue
        start = len(tail) - length
        whole_words = start == 0 or not (tail[start - 1].isalnum() and tail[start].isalnum())
        if length < len(begun) and begun[length].isalnum() and begun[length - 1].isalnum():
            continue
        sentence = start == 0 or tail[:start].rstrip()[-1:] in ".!?…:"
        least, words = _LEAST_OVERLAP
        long = length >= least and len(tail[start:].split()) >= words
        if whole_words and (long or (sentence and length >= 4)):
            return ends[length - 1]
    return 0


def _begins_again(prefix: str, new: str) -> bool:
    start, begun = _plain(prefix.lstrip()[: 2 * _BEGINNING])[0], _plain(new)[0]
    size = min(len(start), len(begun), _BEGINNING)
    if size < 8:
        return False  # too little to tell: a short answer is more often a short continuation
    start, begun = start[:size], begun[:size]
    alike = SequenceMatcher(None, start, begun, autojunk=False).ratio()
    enough, same = _ALIKE_AND_SAME
    return alike >= _ALIKE or (alike >= enough and start[:same] == begun[:same])


def _space_between(prefix: str, new: str) -> str:
    """The white space that the upstream lost at the seam."""
    if not prefix or prefix[-1].isspace() or new[:1] in _NO_SPACE_BEFORE:
        return ""
    if _WIDE.match(prefix[-1]) or _WIDE.match(new[:1]):
        return ""
    return " "
