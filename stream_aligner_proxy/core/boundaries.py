"""Decide whether a terminator ends its sentence.

Rule: a verdict depends only on the text from the sentence's start to the end of what is visible,
and once it is not ``WAIT`` no later text can change it. That makes boundaries independent of how
the text was chunked. The text looked at after a terminator is bounded: closing marks, one run of
white space and, after a possible abbreviation, one word of at most ``WORD_LIMIT`` characters.

A verdict is an ``int``: ``WAIT`` (0) - more text is needed; positive - cut before this offset;
negative - no cut, go on scanning at ``-verdict``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from stream_aligner_proxy.core.abbreviations import (
    LABELS,
    LIST,
    NAME,
    NAME_PARTICLES,
    NUMBER,
    ORDINAL_LEADS,
    ORDINAL_NOUNS,
    STARTERS,
    TITLE,
    classify,
)

WAIT: Final = 0
WORD_LIMIT: Final = 16
_LOOK_BACK: Final = 48

NEWLINES: Final = "\n\r\v\f\x85\u2028\u2029"
# Terminators that need no white space after them: CJK, Indic dandas, Arabic, Armenian, Ethiopic,
# Khmer, Burmese, Tibetan.
STRONG: Final = "。！？｡︒؟۔।॥։።፧។៕၊။།༎"
WEAK: Final = ".!?…．‼⁇⁈⁉"
TERMINATORS: Final = STRONG + WEAK
_CLOSERS: Final = "\"'”’»«›‹“)\\]}」』】〉》）］｝〕〗*_~`"

# Terminators, closing marks, "[12]" citations and note numbers, in any order.
_RUN: Final = re.compile(
    rf"[{TERMINATORS}](?:[{TERMINATORS}{_CLOSERS}¹²³⁴⁵⁶⁷⁸⁹⁰]|\[\d{{1,3}}(?:[,–-] ?\d{{1,3}})*\])*"
)
_SPACED_DOTS: Final = re.compile(rf"(?:[ \xa0]\.(?!\w)[.…{_CLOSERS}]*)*")
_PARTIAL_CITATION: Final = re.compile(r"\[[\d,– -]{0,12}\Z")
_DOTS: Final = re.compile(rf"[{TERMINATORS}]+")
_SPACE: Final = re.compile(r"\s+")
_OPENERS: Final = re.compile(r"(?:[-–—•·‣⁃>]\s?|[\"'“‘”’„‚«»‹›(\[{¿¡*_~`「『（【《]){0,6}")
_WORD: Final = re.compile(r"[^\W\d_][\w'’]*")
_SMILEY: Final = re.compile(r"[:;][-^']?[)(DP](?!\w)")
_STRONG: Final = re.compile(rf"[{STRONG}]")
_NEWLINE: Final = re.compile(rf"[{NEWLINES}]")
_BRACKETED: Final = ("[", "(")
_DIGITS_DOTS: Final = "0123456789.…"
_STRIP: Final = "\"'“”‘’„‚«»‹›([{*_~`¿¡—–/…=+|<>，、：「『（"
_PARTICLES: Final = "とってがはをにでもの"


def is_mark(char: str) -> bool:
    """A character that belongs to the one before it: combining mark, joiner, skin tone, tag."""
    code = ord(char)
    if code < 0x300:
        return False
    return (
        char in "\u200d\ufe0e\ufe0f\u20e3"
        or 0x1F3FB <= code <= 0x1F3FF
        or 0xE0020 <= code <= 0xE007F
        or 0xDC00 <= code <= 0xDFFF
        or unicodedata.category(char)[0] == "M"
    )


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


def stop(text: str, start: int, at: int, end: int, final: bool) -> int:
    """The verdict on the terminator ``text[at]`` of the sentence that starts at ``start``.

    ``end`` is how much of ``text`` is visible; ``final`` says that nothing follows it.
    """
    run = _RUN.match(text, at, end)
    stops = _DOTS.match(text, at, end)
    assert run is not None and stops is not None
    dots = stops.end()
    strong = _STRONG.search(text, at, dots) or (
        text[at] in "!?" and at > start and _is_cjk(text[at - 1])
    )
    j = run.end()
    if not strong and text[at] in ".…":
        spaced = _SPACED_DOTS.match(text, j, end)  # ". . ."
        if spaced and spaced.end() > j:
            dots = j = spaced.end()
    j = _skip_marks(text, j, end)
    if j >= end:
        return end if final else WAIT
    char = text[j]
    if char in NEWLINES:
        return j
    if dots < j and text[at - 1 : at] in _BRACKETED and text[dots] in ")]" and not strong:
        return -dots  # "[...]" stands for words left out
    if char == "[" and not final and _PARTIAL_CITATION.match(text, j, end):
        return WAIT
    if strong:
        if char in "、，,；;：:・" or (j > dots and char in _PARTICLES):
            return -dots  # 「はい。」と言った
        return j
    if not char.isspace():
        if _is_cjk(char) and text[at] != "…" and at > start and text[at - 1] not in _DIGITS_DOTS:
            return j
        return -dots
    return _spaced(text, start, at, dots, j, end, final)


def _skip_marks(text: str, j: int, end: int) -> int:
    """Past combining marks and emoji that hang on to what is before ``j``."""
    while j < end and (is_mark(text[j]) or _is_emoji(text[j])):
        j += 1
    return j


def _spaced(text: str, start: int, at: int, dots: int, j: int, end: int, final: bool) -> int:
    """White space follows at ``j``; the stops, without their closing marks, end at ``dots``."""
    while True:
        space = _SPACE.match(text, j, end)
        assert space is not None
        if _NEWLINE.search(text, j, space.end()):
            return j
        k = space.end()
        if k >= end:
            return j if final else WAIT
        tail = _trailer(text, k, end, final)
        if tail == WAIT:
            return WAIT
        if tail < 0:
            break
        j = tail
        if j >= end:
            return j if final else WAIT
        if not text[j].isspace():
            return -dots
    opened = _OPENERS.match(text, k, end)
    assert opened is not None
    m = opened.end()
    if m >= end:
        return j if final else WAIT
    head = text[m]
    if head.islower() or head in ",;:)%=/+&…":
        return -dots
    if text[at] == "." and at + 1 == dots:
        return _full_stop(text, start, at, j, m, end, final)
    if text[at] in ".…" and head == "I" and text.count(".", at, j) <= 3:
        # "I" always has a capital, so after an ellipsis it says nothing: stay together.
        if m + 1 >= end:
            return j if final else WAIT
        return j if text[m + 1].isalpha() else -dots
    return j


def _trailer(text: str, k: int, end: int, final: bool) -> int:
    """The end of an emoji, a smiley or a spaced closing quote at ``k``; -1 when there is none."""
    char = text[k]
    if _is_emoji(char):
        return _skip_marks(text, k, end)
    if char in '»”"':
        # Opening or closing? A closing mark is followed by white space: « Quoi ! » dit-il.
        if k + 1 >= end:
            return k + 1 if final else WAIT
        return k + 1 if text[k + 1].isspace() else -1
    if char in ":;":
        if end - k < 4 and not final:
            return WAIT
        smiley = _SMILEY.match(text, k, end)
        return smiley.end() if smiley else -1
    return -1


def _next_word(text: str, m: int, end: int, final: bool) -> str | None:
    """The word at ``m``, at most ``WORD_LIMIT`` long; None when it may still grow."""
    limit = min(end, m + WORD_LIMIT)
    found = _WORD.match(text, m, limit)
    if found is None:
        return ""
    if found.end() == end and not final and found.end() - m < WORD_LIMIT:
        return None
    return found.group()


def _full_stop(text: str, start: int, at: int, j: int, m: int, end: int, final: bool) -> int:
    """One ``.``, then white space, then at ``m`` something that is not a lower-case letter."""
    resume = -(at + 1)
    tokens = text[max(start, at - _LOOK_BACK) : at].rsplit(None, 2)
    word = tokens[-1].lstrip(_STRIP) if tokens and not text[at - 1].isspace() else ""
    before = tokens[-2] if len(tokens) > 1 else ""
    head = text[m]
    if not word or (j > at + 1 and text[j - 1] in "\"”’»'"):
        return j
    if word.isdigit():
        return _after_number(text, start, at, j, m, end, final)
    if len(word) == 1:
        return _after_letter(text, j, m, end, final, word, before, resume)
    kind = classify(word) or _looks_short(word)
    if not kind or kind == LIST:
        return j
    if kind == TITLE:
        return resume
    if head.isdigit():
        return resume
    follower = _next_word(text, m, end, final)
    if follower is None:
        return WAIT
    if kind == NUMBER:
        return resume if len(follower) == 1 and follower != "I" else j
    if not head.isupper():
        return j  # a symbol, or a script without case
    return j if follower in STARTERS or follower == "I" else resume


def _looks_short(word: str) -> int:
    """NAME for what is shaped like an abbreviation: ``U.S``, ``p.m``, ``EE`` (UU.), ``Th``."""
    if "." in word:
        return NAME if all(len(part) <= 2 for part in word.split(".")) else 0
    if len(word) == 2 and word.isalpha() and word[0].isupper():
        return NAME if word[1].islower() or word[0] == word[1] else 0
    return 0


def _after_number(text: str, start: int, at: int, j: int, m: int, end: int, final: bool) -> int:
    """``am 3. Oktober``, ``Step 1. Do``: the number may be an ordinal or belong to a label."""
    tokens = text[max(start, at - _LOOK_BACK) : at].split()
    number = tokens[-1].lstrip(_STRIP)
    before = tokens[-2] if len(tokens) > 1 else ""
    if len(number) > 3:
        return j
    if len(tokens) == 2 and before.strip(_STRIP).lower() in LABELS:
        return -(at + 1)
    if not text[m].isupper() or len(number) > 2 and before not in ORDINAL_LEADS:
        return j
    follower = _next_word(text, m, end, final)
    if follower is None:
        return WAIT
    if before in ORDINAL_LEADS:
        return j if follower in STARTERS else -(at + 1)
    return -(at + 1) if follower in ORDINAL_NOUNS else j


def _after_letter(
    text: str, j: int, m: int, end: int, final: bool, word: str, before: str, resume: int
) -> int:
    """A single letter: an initial, a part of a spaced abbreviation, or the end of a sentence."""
    head = text[m]
    if head.isdigit():
        return resume if word in "pPcCsSvVnN§" else j
    follower = _next_word(text, m, end, final)
    if follower is None:
        return WAIT
    after = m + len(follower)
    if 0 < len(follower) <= 3 and follower not in STARTERS:
        if after >= end and not final:
            return WAIT
        if after < end and text[after] == ".":
            return resume  # z. B., J. R. R., n. Chr.
    if not word.isalpha():
        return j
    previous = before.lstrip(_STRIP)
    starter = follower in STARTERS or follower == "I"
    if word.islower():
        return resume if word in "vcps" and not starter else j
    if not word.isupper():
        return resume  # a script without case: Arabic "د."
    if word == "M":
        return resume
    if not previous or previous.endswith("."):
        return resume  # first of a line of initials, or the next one
    if previous[-1].isdigit() or previous[-1] == "°":
        return j
    if previous[0].isupper():
        return j if starter and follower not in NAME_PARTICLES else resume
    if word == "I":
        return j
    return j if starter else resume
