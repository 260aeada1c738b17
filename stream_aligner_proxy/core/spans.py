"""Step over text in which stops end nothing: inline code and formulas.

Rule: each function returns a verdict as in ``verdicts`` - ``WAIT`` or the negative offset at
which scanning goes on. A span is bounded, so that a mark that is never closed delays little:
inline code and ``\\(`` by the line's end or 160 characters, display formulas by a blank line or
1,000 characters; past that the mark is plain text.
"""

from __future__ import annotations

import re
from typing import Final

from stream_aligner_proxy.core.verdicts import NEWLINES, WAIT, View

INLINE_LIMIT: Final = 160
FORMULA_LIMIT: Final = 1000

_NEWLINE: Final = re.compile(rf"[{NEWLINES}]")
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*\n")
_TEX_QUOTED: Final = re.compile(r"[^`\n\r]*''")
_TICKS: Final = re.compile(r"`+")


def inline_code(view: View, at: int) -> int:
    """Over `` `code` `` on one line.

    TeX's ``quoted'' is no code, nor is what a run of back-quotes between white space and a letter
    seems to close: that one opens again.
    """
    text, _, end, final = view
    opening = _TICKS.match(text, at, end)
    assert opening is not None
    inside = opening.end()
    if inside == end:
        return -inside if final else WAIT
    limit = min(end, at + INLINE_LIMIT)
    newline = _NEWLINE.search(text, inside, limit)
    last = newline.start() if newline else limit
    if len(opening.group()) == 2 and _TEX_QUOTED.match(text, inside, last):
        return -inside
    for run in _TICKS.finditer(text, inside, last):
        closes = run.end()
        if closes == end and not final:
            return WAIT
        if closes == at + INLINE_LIMIT:
            break
        opens = text[run.start() - 1].isspace() and text[closes : closes + 1].isalnum()
        if opens and not text[inside].isspace():
            break
        if run.group() == opening.group():
            return -closes
    else:
        if not newline and not final and limit < at + INLINE_LIMIT:
            return WAIT
    return -inside


def dollars(view: View, at: int) -> int:
    """Over ``$$ formula $$``; a single dollar is money or a formula without stops."""
    text, _, end, final = view
    run = 1
    while run < 3 and at + run < end and text[at + run] == "$":
        run += 1
    if run < 3 and at + run >= end and not final:
        return WAIT
    return _formula(view, at, "$$", FORMULA_LIMIT) if run == 2 else -(at + run)


def backslash(view: View, at: int) -> int:
    """Over ``\\[ formula \\]``, ``\\( formula \\)`` and escaped marks."""
    text, _, end, final = view
    if at + 1 >= end:
        return -end if final else WAIT
    match text[at + 1]:
        case "[":
            return _formula(view, at, "\\]", FORMULA_LIMIT)
        case "(":
            return _formula(view, at, "\\)", INLINE_LIMIT)
        case "`" | "$" | "\\":
            return -(at + 2)
        case _:
            return -(at + 1)


def _formula(view: View, at: int, closing: str, limit: int) -> int:
    text, _, end, final = view
    last = min(end, at + limit)
    found = text.find(closing, at + 2, last)
    if _BLANK_LINE.search(text, at + 2, found if found >= 0 else last):
        return -(at + 2)
    if found >= 0:
        return -(found + 2)
    return -(at + 2) if final or last == at + limit else WAIT
