"""Does a single full stop end its sentence when no lower-case letter follows?

Rule: an ordinary word ends it at once. Only after a possible abbreviation, an initial or a short
number is the next word awaited, at most ``WORD_LIMIT`` characters of it. Verdicts as in
``verdicts``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from stream_aligner_proxy.core.abbreviations import (
    LABELS,
    LIST,
    NAME_PARTICLES,
    NUMBER,
    ORDINAL_LEADS,
    ORDINAL_NOUNS,
    STARTERS,
    TITLE,
    classify,
)
from stream_aligner_proxy.core.verdicts import WAIT, View

WORD_LIMIT: Final = 16
_LOOK_BACK: Final = 48
_WORD: Final = re.compile(r"[^\W\d_][\w'’]*")
# What may stand before a word without being a part of it.
_STRIP: Final = "\"'“”‘’„‚«»‹›([{*_~`¿¡—–/…=+|<>，、：「『（"
_CLOSING_QUOTES: Final = "\"”’»'"


def next_word(view: View, at: int) -> str | None:
    """The word at ``at``, at most ``WORD_LIMIT`` long; None when it may still grow."""
    found = _WORD.match(view.text, at, min(view.end, at + WORD_LIMIT))
    if found is None:
        return ""
    if found.end() == view.end and not view.final and found.end() - at < WORD_LIMIT:
        return None
    return found.group()


class _Stop(NamedTuple):
    """A full stop and its surroundings."""

    view: View
    at: int
    cut: int  # where the sentence would end, after closing marks
    head_at: int  # the first character after white space and opening marks
    word: str  # before the stop, without opening marks
    before: str  # the word before that one
    second: bool  # ``word`` is the second of its sentence

    @property
    def no(self) -> int:
        """The verdict that nothing ends here."""
        return -(self.at + 1)


def full_stop(view: View, at: int, cut: int, head_at: int) -> int:
    """The verdict on the ``.`` at ``at``, by the fields of ``_Stop``."""
    text = view.text
    tokens = text[max(view.start, at - _LOOK_BACK) : at].rsplit(None, 2)
    word = tokens[-1].lstrip(_STRIP) if tokens and not text[at - 1].isspace() else ""
    before = tokens[-2].lstrip(_STRIP) if len(tokens) > 1 else ""
    if not word or (cut > at + 1 and text[cut - 1] in _CLOSING_QUOTES):
        return cut
    found = _Stop(view, at, cut, head_at, word, before, len(tokens) == 2)
    if word.isdigit():
        return _after_number(found)
    return _after_letter(found) if len(word) == 1 else _after_word(found)


def _after_word(stop: _Stop) -> int:
    """An ordinary word ends the sentence; an abbreviation by its class."""
    kind = classify(stop.word)
    if not kind:
        return stop.cut
    text = stop.view.text
    head = text[stop.head_at]
    if kind == TITLE or head.isdigit():
        return stop.no
    if kind == LIST:
        return stop.no if text[stop.head_at - 1] in "([" else stop.cut  # "ff. (2019)"
    if kind != NUMBER and not head.isupper():
        return stop.cut  # a symbol, or a script without case
    follower = next_word(stop.view, stop.head_at)
    if follower is None:
        return WAIT
    if kind == NUMBER:
        return stop.no if len(follower) == 1 and follower not in STARTERS else stop.cut
    return stop.cut if follower in STARTERS else stop.no


def _after_number(stop: _Stop) -> int:
    """``am 3. Oktober``, ``Step 1. Do``: the number may be an ordinal or belong to a label."""
    if len(stop.word) > 3:
        return stop.cut
    if stop.second and stop.before.lower() in LABELS:
        return stop.no
    if stop.word == "1" and stop.before.endswith(":"):
        return stop.no  # "They are: 1. Ann"
    led = stop.before in ORDINAL_LEADS
    head = stop.view.text[stop.head_at]
    dated = stop.before.endswith(".") and stop.before[:-1].isdigit()
    if head.isdigit() and (led or dated):
        return stop.no  # am 3. 10. 1990
    if not head.isupper() or (len(stop.word) > 2 and not led):
        return stop.cut
    follower = next_word(stop.view, stop.head_at)
    if follower is None:
        return WAIT
    goes_on = follower not in STARTERS if led else follower in ORDINAL_NOUNS
    return stop.no if goes_on else stop.cut


def _after_letter(stop: _Stop) -> int:
    """A single letter: an initial, a part of a spaced abbreviation, or the end of a sentence."""
    view, _, cut, head_at, word, before, _ = stop
    text = view.text
    if not word.isalpha():
        return cut
    if text[head_at].isdigit():
        return stop.no if word in "pcsvnPCSVNL" else cut
    follower = next_word(view, head_at)
    if follower is None:
        return WAIT
    starter = follower in STARTERS
    short = 0 < len(follower) <= 3 and not (starter and len(follower) > 1)
    if short and text.startswith(".", head_at + len(follower), view.end):
        return stop.no  # z. B., J. R. R., n. Chr.
    if word.islower():
        titled = classify(word) == TITLE or word in "vcpsг"
        return stop.no if titled and not starter and not before[-1:].isdigit() else cut
    if not word.isupper() or word == "M":
        return stop.no  # a script without case (Arabic "د."), French "M. Le Pen"
    if not before:
        ends = False
    elif before.endswith("."):  # one of several initials, or "d. C."
        ends = starter and before[0].islower()
    elif before[-1].isdigit() or before[-1] == "°":
        ends = True
    elif before[0].isupper():
        ends = starter and follower not in NAME_PARTICLES
    else:
        ends = starter or word == "I"
    return cut if ends else stop.no
