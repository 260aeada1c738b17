"""Decide whether a terminator ends its sentence.

Rule: looked at after a terminator are closing marks and emoji, one run of white space, opening
marks and one character; only after a possible abbreviation, initial or short number one word. The
terminators of scripts that write no space after them need one character that is not a closing
mark. A line break decides at once. Verdicts as in ``verdicts``.
"""

from __future__ import annotations

import re
from typing import Final

from stream_aligner_proxy.core.abbreviations import STARTERS, classify
from stream_aligner_proxy.core.full_stops import full_stop, next_word
from stream_aligner_proxy.core.verdicts import NEWLINES, WAIT, View, is_mark

# Terminators that need no white space after them: CJK, Indic dandas, Arabic, Armenian, Ethiopic,
# Khmer, Burmese, Tibetan.
STRONG: Final = "。！？｡︒؟۔।॥։።፧។៕။༎"
WEAK: Final = ".!?…．‼⁇⁈⁉\u037e"
TERMINATORS: Final = STRONG + WEAK
# A longer run of stops and closing marks is a leader ("Contents ........ 5") or noise.
RUN_LIMIT: Final = 64
_CLOSERS: Final = "\"'”’»«›‹“)\\]}」』】〉》）］｝〕〗*_~`¹²³⁴⁵⁶⁷⁸⁹⁰"

_STOPS: Final = re.compile(rf"[{TERMINATORS}]+")
# Terminators, closing marks, citations ("[12]", "[1, 3]", "[^2]") and closing tags in any order.
_RUN: Final = re.compile(
    rf"(?:[{TERMINATORS}{_CLOSERS}]"
    r"|\[\^?\d{1,3}(?:[,–-] ?\d{1,3}){0,3}\]|</[A-Za-z]\w{0,11}>)+"
)
_MAYBE_CLOSER: Final = re.compile(r"(?:\[[\d,^– -]{0,20}|<b?|</\w{0,12})\Z")
_SPACED_DOTS: Final = re.compile(rf"(?:[ \xa0]\.(?!\w)[.…{_CLOSERS}]*)*")
_STRONG: Final = re.compile(rf"[{STRONG}]")
_NEWLINE: Final = re.compile(rf"[{NEWLINES}]")
_SPACE: Final = re.compile(r"\s+")
_OPENERS: Final = re.compile(r"(?:[-–—•·‣⁃>]\s?|[\"'“‘”’„‚«»‹›(\[{¿¡*_~`「『（【《]){0,6}")
_SMILEY: Final = re.compile(r"[:;][-^']?[)(DP](?!\w)")
_GOES_ON: Final = ",;:)%=/+&…?!"
_AMBIGUOUS: Final = re.compile(r"\*+|_+|~+|`+|\"|'")
_PARTICLES: Final = "とってがはをにでもの"


def _is_emoji(char: str) -> bool:
    code = ord(char)
    return 0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or code in (0x2B50, 0x2B55)


def _is_cjk(char: str) -> bool:
    code = ord(char)
    return (
        0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
    )


def _skip_marks(text: str, at: int, end: int) -> int:
    """Past combining marks and emoji that hang on to what is before ``at``."""
    while at < end and (is_mark(text[at]) or _is_emoji(text[at])):
        at += 1
    return at


def stop(view: View, at: int) -> int:
    """The verdict on the terminator at ``at``."""
    text, start, end, final = view
    stops = _STOPS.match(text, at, end)
    run = _RUN.match(text, at, end)
    assert stops is not None
    assert run is not None
    dots = stops.end()
    cut = run.end()
    if cut - at >= RUN_LIMIT:
        return -(at + RUN_LIMIT)
    strong = _STRONG.search(text, at, dots) or (
        text[at] in "!?" and at > start and _is_cjk(text[at - 1])
    )
    if strong:
        closed = _closing_end(view, at, dots, cut)
        if closed == WAIT:
            return WAIT
        if closed < cut:
            return closed
    elif text[at] in ".…":
        spaced = _SPACED_DOTS.match(text, cut, end)
        if spaced and spaced.end() > cut:  # ". . ."
            dots = cut = spaced.end()
    cut = _skip_marks(text, cut, end)
    if cut >= end:
        return end if final else WAIT
    char = text[cut]
    if char in NEWLINES:
        return cut
    if char in "[<" and not final and _MAYBE_CLOSER.match(text, cut, end):
        return WAIT
    if text.startswith("<br", cut, end):
        return cut
    if strong:
        if char in "、，,；;：:・" or (cut > dots and char in _PARTICLES):
            return -dots  # 「はい。」と言った
        return cut
    if dots < cut and at > start and text[at - 1] in "[(" and text[dots] in ")]":
        return -dots  # "[...]" stands for words left out
    if char.isspace():
        return _spaced(view, at, dots, cut)
    return _attached(view, at, dots, cut)


def _closing_end(view: View, at: int, dots: int, run_end: int) -> int:
    """Where the closing marks after a CJK stop end: those that may as well open need a partner."""
    text, start, end, final = view
    here = dots
    while here < run_end:
        if text[here] in "“‘«‹":
            return here
        marks = _AMBIGUOUS.match(text, here, end)
        if marks is None:
            here += 1
            continue
        if marks.end() >= end and not final:
            return WAIT
        if text.count(marks.group(), start, at) % 2 == 0:
            return here
        here = marks.end()
    return run_end


def _attached(view: View, at: int, dots: int, cut: int) -> int:
    """A character follows without white space: a URL, a decimal, or a forgotten space."""
    text = view.text
    char = text[cut]
    previous = text[at - 1] if at > view.start else ""
    if _is_cjk(char):
        return -dots if text[at] == "…" or previous in "0123456789.…" else cut
    if char.isupper() and previous.islower() and cut == dots == at + 1:
        # "of quality.You will": only before a whole word that commonly starts a sentence.
        word = next_word(view, cut)
        if word is None:
            return WAIT
        if len(word) > 1 and word in STARTERS and cut + len(word) < view.end:
            last = text[max(view.start, at - 24) : at].rsplit(None, 1)[-1]
            if text[cut + len(word)] == " " and last.isalpha() and not classify(last):
                return cut
    return -dots


def _spaced(view: View, at: int, dots: int, cut: int) -> int:
    """White space follows at ``cut``; the stops, without their closing marks, end at ``dots``."""
    text, _, end, final = view
    while True:
        space = _SPACE.match(text, cut, end)
        assert space is not None
        if _NEWLINE.search(text, cut, space.end()):
            return cut
        after = space.end()
        if after >= end:
            return cut if final else WAIT
        tail = _trailer(view, after)
        if tail == WAIT:
            return WAIT
        if tail < 0:
            break
        cut = tail
        if cut >= end:
            return cut if final else WAIT
        if not text[cut].isspace():
            return -dots
    opened = _OPENERS.match(text, after, end)
    head_at = opened.end() if opened else after
    if head_at >= end:
        return cut if final else WAIT
    head = text[head_at]
    single = text[at] == "." and dots == at + 1
    if head in _GOES_ON:
        return -dots
    if head.islower():
        return _before_small(view, at, dots, cut, single)
    if single:
        return full_stop(view, at, cut, head_at)
    if head == "I" and text[at] in ".…" and text.count(".", at, cut) in (0, 1, 3):
        # "I" always has a capital, so after an ellipsis it says nothing: stay together.
        if head_at + 1 >= end:
            return cut if final else WAIT
        return cut if text[head_at + 1].isalpha() else -dots
    return cut


def _before_small(view: View, at: int, dots: int, cut: int, single: bool) -> int:
    """A lower-case letter follows: the sentence goes on, unless its writer never uses capitals."""
    text = view.text
    if not text[view.start].islower() or cut > dots:
        return -dots
    if not single:
        return -dots if text[at] in ".…" else cut
    last = text[max(view.start, at - 24) : at].rsplit(None, 1)[-1]
    return cut if len(last) > 1 and last.isalpha() and not classify(last) else -dots


def _trailer(view: View, at: int) -> int:
    """The end of an emoji, a smiley or a spaced closing quote at ``at``; -1: there is none."""
    text, _, end, final = view
    char = text[at]
    if _is_emoji(char):
        return _skip_marks(text, at, end)
    if char in '»”"':
        # Opening or closing? White space follows a closing mark: « Quoi ! » dit-il.
        if at + 1 >= end:
            return end if final else WAIT
        return at + 1 if text[at + 1].isspace() else -1
    if char in ":;":
        if end - at < 4 and not final:
            return WAIT
        smiley = _SMILEY.match(text, at, end)
        return smiley.end() if smiley else -1
    return -1
