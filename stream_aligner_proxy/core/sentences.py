"""Cut a growing text into sentences: incremental, lossless, independent of chunking.

Rules:

- The texts of the sentences, joined, are the input, character for character.
- Leading white space belongs to the sentence after it, so that text committed so far never ends
  in white space. Only a rest at ``flush`` (or a flood of white space longer than the bound) is a
  sentence of white space alone.
- A boundary is decided from the text alone, as soon as the few characters it needs are visible
  (see ``boundaries``); it never depends on how the text was chunked.
- At most ``max_chars`` characters wait inside. A sentence that grows longer is cut at its last
  clause mark, else at its last white space, else between two characters.
- Units: a sentence, a heading, a table row, a formula, one line of fenced code.

Fenced code is cut at lines, not kept whole: code is passed through by default, so a line can be
delivered as soon as it is complete, and a long block needs no buffer. Its lines say ``code``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from stream_aligner_proxy.core.boundaries import NEWLINES, TERMINATORS, WAIT, is_mark, stop

MIN_MAX_CHARS: Final = 16
# How far an inline span ("`code`", "\\(x\\)", "$$ x $$") may reach before it is taken literally.
_SPAN_LIMIT: Final = 240
_FORMULA_LIMIT: Final = 1000
# A newline inside prose joins two lines only when the first is at least this wide (hard wraps).
_WRAP_WIDTH: Final = 60

_TRIGGER: Final = re.compile(rf"[{TERMINATORS}{NEWLINES}`$\\]")
_LIST_TRIGGER: Final = re.compile(rf"[{TERMINATORS}{NEWLINES}`$\\)•⁃]")
_NEWLINE: Final = re.compile(rf"[{NEWLINES}]")
_BLANK_LINE: Final = re.compile(r"\n[ \t\r]*\n")
_NOT_SPACE: Final = re.compile(r"\S")
_SPACE: Final = re.compile(r"\s+")
_TICKS: Final = re.compile(r"`+")
_RUN_OF_FENCE: Final = re.compile(r"`+|~+")
_HEADING: Final = re.compile(r"#{1,6}(?=[ \t])")
_MAYBE_HEADING: Final = re.compile(r"#{1,6}\Z")
# What may stand before a fence on its line: block quotes and list marks.
_PREFIX: Final = re.compile(r"(?:>[ \t]*|[-*+][ \t]+|\d{1,9}[.)][ \t]+)*")
_MAYBE_PREFIX: Final = re.compile(r"(?:[-*+]|\d{1,9}[.)]?)?\Z")
_FENCE_END: Final = re.compile(r"(?:>[ \t]*)*(`{3,}|~{3,})\Z")
_MARK: Final = re.compile(
    r"(?P<bullet>[-*+•⁃‣·])?[ \t]*[*_(]{0,3}(?P<value>\d{1,3}|[A-Za-z]|[ivx]{2,4}|[IVX]{2,4})"
    r"(?P<form>\.\)|[.)])[*_]{0,3}[ \t]"
)
_MAYBE_MARK: Final = re.compile(
    r"[-*+•⁃‣·]?[ \t]{0,4}[*_(]{0,3}(?:\d{0,3}|[A-Za-z]|[ivx]{2,4}|[IVX]{2,4})"
    r"(?:(?:\.\)|[.)])[*_]{0,3})?\Z"
)
# "Add 2. Then": a number after one of these is not the next item of a list on one line.
_OPERATORS: Final = frozenset(
    "with by is are of to and or plus minus times equals add than get from at in for on = + - * /"
    " × ÷ ≈ < >".split()
)
_CLAUSE: Final = re.compile(r"[,;:—–](?=\s)|[，；：、،؛]")

_Kind = Literal["prose", "code"]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One unit of review; ``text`` is exactly as in the input, with its leading white space."""

    text: str
    kind: _Kind = "prose"


class SentenceSplitter:
    """Feed it text as it arrives; it returns each sentence once, as early as it is certain."""

    def __init__(self, *, max_chars: int = 2000) -> None:
        """``max_chars``: how many characters may wait inside (at least 16)."""
        if max_chars < MIN_MAX_CHARS:
            raise ValueError(f"max_chars must be at least {MIN_MAX_CHARS}, not {max_chars}")
        self._max = max_chars
        self._reset()

    def _reset(self) -> None:
        self._buf = ""
        self._start = 0  # of the sentence being read; nonzero only inside feed and flush
        self._fence = ""  # the fence that opened the code block we are in
        self._quoted = False  # that fence stands in a block quote
        self._line_start = True  # the sentence being read starts on a line of its own
        self._begin()

    def _begin(self) -> None:
        """Forget what was learnt about the last sentence."""
        self._pos = self._start  # everything before it is known to hold no boundary
        self._head = -1  # first character that is not white space; -1: not seen yet
        self._opening = False  # the line being read is the one with the opening fence
        self._mode: Literal["head", "line", "prose"] = "head"
        self._kind: _Kind = "code" if self._fence else "prose"
        self._trigger = _TRIGGER
        self._next_item = ""  # what opens the next item of a list on one line: "2.", "b)"
        self._bullet = ""

    @property
    def pending(self) -> int:
        """How many characters wait inside; less than ``max_chars`` between calls."""
        return len(self._buf)

    def feed(self, text: str) -> list[Sentence]:
        """Take more text; return the sentences that are finished now."""
        self._buf = buf = self._buf + text
        # The common case first: a token without anything that could end a sentence.
        if (
            self._mode == "prose"
            and len(buf) < self._max
            and self._trigger.search(buf, self._pos) is None
        ):
            self._pos = len(buf)
            return []
        return self._run(final=False)

    def flush(self) -> list[Sentence]:
        """Return the rest; the splitter is then as new."""
        out = self._run(final=True)
        self._reset()
        return out

    def _run(self, *, final: bool) -> list[Sentence]:
        out: list[Sentence] = []
        buf = self._buf
        size = len(buf)
        while self._start < size:
            limit = self._start + self._max
            end = min(size, limit)
            # What lies beyond the bound must not help to decide: had it come later, the sentence
            # would have been cut without it.
            cut = self._scan(end, final and end == size)
            if cut == WAIT:
                if size < limit:
                    break
                cut = self._forced(end)
            text = buf[self._start : cut]
            out.append(Sentence(text, self._kind))
            blank = text.isspace()
            self._line_start = blank and (self._line_start or _NEWLINE.search(text) is not None)
            self._start = cut
            self._begin()
        if self._start:
            start = self._start
            self._buf = buf[start:]
            self._pos -= start
            self._head = max(self._head - start, -1)
            self._start = 0
        return out

    # -- one sentence: each step returns where it ends, or WAIT ---------------------------------

    def _scan(self, end: int, final: bool) -> int:
        if self._mode == "head" and not self._read_head(end, final):
            return end if final else WAIT
        if self._mode == "line":
            return self._read_line(end, final)
        return self._read_prose(end, final)

    def _read_head(self, end: int, final: bool) -> bool:
        """Find out what kind of unit opens here; False when that is not visible yet."""
        buf = self._buf
        if self._head < 0:
            found = _NOT_SPACE.search(buf, self._pos, end)
            if found is None:
                self._pos = end
                return False
            self._head = self._pos = found.start()
            if _NEWLINE.search(buf, self._start, self._head):
                self._line_start = True
        head = self._head
        if self._fence and self._quoted and self._line_start and buf[head] != ">":
            self._fence = ""  # the block quote ended, and its code with it
            self._kind = "prose"
        if self._fence:
            self._mode = "line"
            return True
        if self._line_start:
            if buf[head] == "|" or _HEADING.match(buf, head, end):
                self._mode = "line"
                return True
            if not final and _MAYBE_HEADING.match(buf, head, end):
                return False
            fence = self._read_fence(end, final)
            if fence is not None:
                return fence
        mark = _MARK.match(buf, head, end)
        if mark is None:
            if not final and _MAYBE_MARK.match(buf, head, end):
                return False
        else:
            self._expect_items(mark)
        self._mode = "prose"
        return True

    def _read_fence(self, end: int, final: bool) -> bool | None:
        """True: a fence opens here; False: not known yet; None: it does not."""
        buf = self._buf
        prefix = _PREFIX.match(buf, self._head, end)
        at = prefix.end() if prefix else self._head
        if not final and _MAYBE_PREFIX.match(buf, at, end):
            return False
        run = _RUN_OF_FENCE.match(buf, at, end)
        if run is None:
            return None
        if run.end() == end and not final:
            return False
        if len(run.group()) < 3:
            return None
        if buf[at] == "`":
            # A back-quote later on the line makes it inline code (CommonMark 4.5).
            newline = _NEWLINE.search(buf, run.end(), end)
            if buf.find("`", run.end(), newline.start() if newline else end) >= 0:
                return None
            if newline is None and not final:
                return False
        self._fence = run.group()
        self._quoted = buf.startswith(">", self._head)
        self._kind = "code"
        self._mode = "line"
        self._opening = True
        return True

    def _expect_items(self, mark: re.Match[str]) -> None:
        """Step over a list mark, whose dot ends nothing; know the one that would come next."""
        self._pos = mark.end() - 1
        value, form = mark["value"], mark["form"]
        if value.isdigit():
            self._next_item = f"{int(value) + 1}{form}"
        elif len(value) == 1 and value not in "zZI":
            self._next_item = f"{chr(ord(value) + 1)}{form}"
        self._bullet = mark["bullet"] or ""
        self._trigger = _LIST_TRIGGER

    def _read_line(self, end: int, final: bool) -> int:
        """A unit that ends with its line: a heading, a table row, a line of code."""
        buf = self._buf
        found = _NEWLINE.search(buf, self._pos, end)
        if found is None and not final:
            self._pos = end
            return WAIT
        cut = _content_end(buf, self._head, found.start() if found else end)
        if self._fence and self._line_start and not self._opening:
            closing = _FENCE_END.match(buf, self._head, cut)
            if closing and closing[1].startswith(self._fence):
                self._fence = ""
        return cut

    def _read_prose(self, end: int, final: bool) -> int:
        buf = self._buf
        while True:
            found = self._trigger.search(buf, self._pos, end)
            if found is None:
                self._pos = end
                return _content_end(buf, self._head, end) if final else WAIT
            at = found.start()
            self._pos = at
            match buf[at]:
                case "`":
                    verdict = _inline_code(buf, at, end, final)
                case "$":
                    verdict = _dollars(buf, at, end, final)
                case "\\":
                    verdict = _backslash(buf, at, end, final)
                case ")" | "•" | "⁃":
                    verdict = self._item(at, end, final)
                case char if char in NEWLINES:
                    verdict = self._newline(at, end, final)
                case _:
                    verdict = -1
                    if self._next_item and buf[at] == ".":
                        verdict = self._item(at, end, final)
                    if verdict < 0:
                        verdict = stop(buf, self._head, at, end, final)
            if verdict >= 0:
                return verdict
            self._pos = -verdict

    def _newline(self, at: int, end: int, final: bool) -> int:
        """A line break ends the unit, unless it looks like a hard wrap inside a sentence.

        In recorded replies of five models (5,900 line breaks that follow text) fewer than 0.3% were
        hard wraps; the others separate items, formulas, verses and paragraphs. So a break ends the
        unit at once; only after a wide line without a stop the next character is awaited.
        """
        buf = self._buf
        cut = _content_end(buf, self._head, at)
        line = max(buf.rfind("\n", self._head, cut), self._head - 1) + 1
        if cut - line < _WRAP_WIDTH or buf[cut - 1] in ":;|)":
            return cut
        space = _SPACE.match(buf, cut, end)
        assert space is not None
        if len(space.group().replace("\r", "").strip(" \t")) > 1:
            return cut
        if space.end() >= end:
            return cut if final else WAIT
        return -space.end() if buf[space.end()].islower() else cut

    def _item(self, at: int, end: int, final: bool) -> int:
        """The next item of a list written on one line: "1) Wash 2) Dry", "• a • b"."""
        buf = self._buf
        if buf[at] in "•⁃":
            first = at
            if buf[at] != self._bullet or not buf[at - 1].isspace():
                return -(at + 1)
        else:
            expected = self._next_item
            after = at + 2 if buf[at] == "." and expected.endswith(".)") else at + 1
            first = after - len(expected)
            if (
                not expected
                or first <= self._head
                or not buf[first - 1].isspace()
                or not expected.startswith(buf[first : min(after, end)])
            ):
                return -(at + 1)
            space = _SPACE.match(buf, after, end)
            if after >= end or (space and space.end() >= end):
                return -(at + 1) if final else WAIT
            if not space or not buf[space.end()].isupper():
                return -(at + 1)
        cut = _content_end(buf, self._head, first)
        last_word = buf[self._head : cut].rsplit(None, 1)[-1]
        if last_word.lower() in _OPERATORS or last_word == self._bullet:
            return -(at + 1)
        return cut

    # -- the bound ------------------------------------------------------------------------------

    def _forced(self, end: int) -> int:
        """Where to cut a sentence that fills the bound: best place in its second half."""
        buf = self._buf
        middle = end - self._max // 2
        if self._head < 0:  # white space alone: keep CR LF together
            return end - 1 if buf[end - 1] == "\r" else end
        if self._kind == "prose":
            clauses = [m.end() for m in _CLAUSE.finditer(buf, middle, end - 1)]
            if clauses and not is_mark(buf[clauses[-1]]):
                return clauses[-1]
        spaces = [m.start() for m in _SPACE.finditer(buf, max(middle, self._head + 1), end)]
        if spaces:
            return spaces[-1]
        cut = end - 1  # buf[end - 1] is visible: it says whether it belongs to what is before it
        while cut > middle and (is_mark(buf[cut]) or _joins(buf[cut - 1])):
            cut -= 1
        return cut if cut > middle else end - 1


def _content_end(text: str, start: int, end: int) -> int:
    """The end of ``text[start:end]`` without its trailing white space."""
    while end > start and text[end - 1].isspace():
        end -= 1
    return end


def _joins(char: str) -> bool:
    """A character that the next one belongs to: zero-width joiner, high surrogate."""
    return char == "\u200d" or "\ud800" <= char <= "\udbff"


def _inline_code(text: str, at: int, end: int, final: bool) -> int:
    """Step over `` `code` `` on one line; an unclosed run of back-quotes is plain text."""
    opening = _TICKS.match(text, at, end)
    assert opening is not None
    if opening.end() == end and not final:
        return WAIT
    ticks = opening.group()
    limit = min(end, at + _SPAN_LIMIT)
    newline = _NEWLINE.search(text, opening.end(), limit)
    stop_at = newline.start() if newline else limit
    for run in _TICKS.finditer(text, opening.end(), stop_at):
        if run.end() == end and not final and run.end() < at + _SPAN_LIMIT:
            return WAIT
        if run.group() == ticks:
            return -run.end()
    if newline or final or limit == at + _SPAN_LIMIT:
        return -opening.end()
    return WAIT


def _dollars(text: str, at: int, end: int, final: bool) -> int:
    """Step over ``$$ formula $$``; single dollars are money or short enough not to matter."""
    if at + 2 >= end and not final:
        if at + 1 < end and text[at + 1] != "$":
            return -(at + 1)
        return WAIT
    if not text.startswith("$$", at):
        return -(at + 1)
    if text.startswith("$$$", at):
        return -(at + 3)
    return _formula(text, at, end, final, "$$", _FORMULA_LIMIT)


def _backslash(text: str, at: int, end: int, final: bool) -> int:
    """Step over ``\\[ formula \\]``, ``\\( formula \\)`` and escaped marks."""
    if at + 1 >= end:
        return -end if final else WAIT
    match text[at + 1]:
        case "[":
            return _formula(text, at, end, final, "\\]", _FORMULA_LIMIT)
        case "(":
            return _formula(text, at, end, final, "\\)", _SPAN_LIMIT)
        case "`" | "$" | "\\":
            return -(at + 2)
        case _:
            return -(at + 1)


def _formula(text: str, at: int, end: int, final: bool, closing: str, limit: int) -> int:
    """Step over a formula; without a closing mark in reach, or before a blank line, it is none."""
    last = min(end, at + limit)
    found = text.find(closing, at + 2, last)
    if _BLANK_LINE.search(text, at + 2, found if found >= 0 else last):
        return -(at + 2)
    if found >= 0:
        return -(found + 2)
    return -(at + 2) if final or last == at + limit else WAIT


def split(text: str, *, max_chars: int = 2000) -> list[Sentence]:
    """The sentences of a whole text: one ``feed`` and a ``flush``."""
    splitter = SentenceSplitter(max_chars=max_chars)
    return splitter.feed(text) + splitter.flush()
