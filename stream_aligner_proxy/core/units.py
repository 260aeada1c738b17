"""What a unit opens with: a fence, a heading, a table row, a list mark, or plain prose.

Rule: an opening is recognised as soon as its first characters can be nothing else; most units
(those that open with a word of two letters or more) need no waiting at all.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from stream_aligner_proxy.core.verdicts import WAIT, View, content_end

# A line in the sense of Markdown; the other line separators open none.
LINE_BREAK: Final = re.compile(r"[\n\r]")
_SPACE: Final = re.compile(r"\s+")
_HEADING: Final = re.compile(r"#{1,6}(?=[ \t])")
_MAYBE_HEADING: Final = re.compile(r"#{1,6}\Z")

# What may stand before a fence on its line: block quotes and list marks, any indentation.
_PREFIX: Final = re.compile(r"(?:>[ \t]*|[-*+][ \t]+|\d{1,9}[.)][ \t]+)*")
_MAYBE_PREFIX: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)]?)?\Z")
_FENCE: Final = re.compile(r"`+|~+")
_FENCE_END: Final = re.compile(r"(?:>[ \t]*)*(`{3,}|~{3,})\Z")

_MARK: Final = re.compile(
    r"(?P<bullet>[-*+•⁃‣·])?[ \t]*[*_(]{0,3}(?P<value>\d{1,3}|[A-Za-z]|[ivx]{2,4}|[IVX]{2,4})"
    r"(?P<form>\.\)|[.)])[*_]{0,3}[ \t]"
)
_MAYBE_MARK: Final = re.compile(
    r"[-*+•⁃‣·]?[ \t]*[*_(]{0,3}(?:\d{0,3}|[A-Za-z]|[ivx]{2,4}|[IVX]{2,4})"
    r"(?:(?:\.\)|[.)])[*_]{0,3})?\Z"
)
INLINE_BULLETS: Final = "•⁃"
# "Add 2. Then": a number after one of these is not the next item of a list on one line.
_OPERATORS: Final = frozenset(
    {"with", "by", "is", "are", "of", "to", "and", "or", "plus", "minus", "times", "equals", "add"}
    | {"than", "get", "from", "at", "in", "for", "on", *"=+-*/×÷≈<>"}
)


class ListMark(NamedTuple):
    """A list mark: where its text begins, and what opens the next item on the same line."""

    end: int
    successor: str  # "2." after "1.", "b)" after "a)"; empty when there is none
    bullet: str


class Fence(NamedTuple):
    """The fence that opened a code block."""

    run: str  # its back-quotes or tildes
    quoted: bool  # it stands in a block quote

    def closed_by(self, line: str) -> bool:
        """A line (without surrounding white space) of at least as many of the same characters."""
        closing = _FENCE_END.match(line)
        return closing is not None and closing[1].startswith(self.run)

    def abandoned_by(self, char: str) -> bool:
        """A line that opens with ``char`` leaves the block quote, and so the code in it."""
        return self.quoted and char != ">"


def one_line(view: View) -> bool | None:
    """Whether a heading or table row opens here, which ends with its line; None: not known yet."""
    text, start, end, final = view
    if text[start] == "|" or _HEADING.match(text, start, end):
        return True
    return None if not final and _MAYBE_HEADING.match(text, start, end) else False


def fence(view: View) -> Fence | bool | None:
    """The fence that opens here; False: there is none; None: not known yet.

    A fence of back-quotes is known at the end of its line only: one more back-quote on the line
    makes it inline code (CommonMark 0.31, 4.5).
    """
    text, start, end, final = view
    prefix = _PREFIX.match(text, start, end)
    at = prefix.end() if prefix else start
    if not final and _MAYBE_PREFIX.match(text, at, end):
        return None
    run = _FENCE.match(text, at, end)
    if run is None:
        return False
    if run.end() == end and not final:
        return None
    if run.end() - at < 3:
        return False
    if text[at] == "`":
        newline = LINE_BREAK.search(text, at, end)
        if text.find("`", run.end(), newline.start() if newline else end) >= 0:
            return False
        if newline is None and not final:
            return None
    return Fence(run.group(), text[start] == ">")


def list_mark(view: View) -> ListMark | bool | None:
    """The list mark ("1. ", "**a)** ") that opens here; False: none; None: not known yet."""
    text, start, end, final = view
    mark = _MARK.match(text, start, end)
    if mark is None:
        if not final and _MAYBE_MARK.match(text, start, end):
            return None
        return ListMark(start + 1, "", text[start]) if text[start] in INLINE_BULLETS else False
    value = mark["value"]
    successor = ""
    if value.isdigit():
        successor = f"{int(value) + 1}{mark['form']}"
    elif len(value) == 1 and value not in "zZI":
        successor = f"{chr(ord(value) + 1)}{mark['form']}"
    return ListMark(mark.end() - 1, successor, mark["bullet"] or "")


def next_item(view: View, mark: ListMark, at: int) -> int:
    """The verdict on ``text[at]``, if it is a part of the next item's mark on the same line.

    "1) Wash 2) Dry" and "• a • b": the next mark in order, then a capital letter.
    """
    text, start, end, final = view
    no = -(at + 1)
    if text[at] in INLINE_BULLETS:
        if text[at] != mark.bullet or not text[at - 1].isspace():
            return no
        first = at
    else:
        expected = mark.successor
        after = at + 2 if text[at] == "." and expected.endswith(".)") else at + 1
        first = after - len(expected)
        if (
            not expected
            or first <= start
            or not text[first - 1].isspace()
            or not expected.startswith(text[first : min(after, end)])
        ):
            return no
        space = _SPACE.match(text, after, end)
        if after >= end or (space and space.end() >= end):
            return no if final else WAIT
        if not space or not text[space.end()].isupper():
            return no
    cut = content_end(text, start, first)
    last_word = text[start:cut].rsplit(None, 1)[-1]
    return no if last_word.lower() in _OPERATORS or last_word == mark.bullet else cut
