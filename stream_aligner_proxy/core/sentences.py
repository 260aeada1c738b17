"""Cut a growing text into sentences: incremental, lossless, independent of chunking.

Rules:

- The texts of the sentences, joined, are the input, character for character.
- Leading white space belongs to the sentence after it, so that text committed so far never ends
  in white space. Only a rest at ``flush`` (or white space longer than the bound) is a sentence of
  white space alone.
- A boundary is decided from the text alone, as soon as the few characters it needs are visible
  (see ``boundaries``); it never depends on how the text was chunked.
- Fewer than ``max_chars`` characters wait inside. A sentence that grows longer is cut in its second
  half: at its last clause mark, else at its last white space, else between two characters.
- Units: a sentence, a heading, a table row, a line of verse, one line of fenced code. Inline code
  and formulas are not cut.

Fenced code is cut at lines, not kept whole: code is passed through by default, so a line can be
delivered as soon as it is complete, and a long block needs no buffer. Its lines say ``code``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from stream_aligner_proxy.core.abbreviations import classify
from stream_aligner_proxy.core.boundaries import TERMINATORS, stop
from stream_aligner_proxy.core.spans import backslash, dollars, inline_code
from stream_aligner_proxy.core.units import (
    INLINE_BULLETS,
    LINE_BREAK,
    Fence,
    ListMark,
    fence,
    list_mark,
    next_item,
    one_line,
)
from stream_aligner_proxy.core.verdicts import (
    NEWLINES,
    WAIT,
    View,
    content_end,
    is_mark,
    joins_next,
)

MIN_MAX_CHARS: Final = 16
# A newline inside prose joins two lines only when the first is at least this wide (hard wraps).
_WRAP_WIDTH: Final = 60

_TRIGGER: Final = re.compile(rf"[{TERMINATORS}{NEWLINES}`$\\]")
_LIST_TRIGGER: Final = re.compile(rf"[{TERMINATORS}{NEWLINES}`$\\){INLINE_BULLETS}]")
_NEWLINE: Final = re.compile(rf"[{NEWLINES}]")
_NOT_SPACE: Final = re.compile(r"\S")
_SPACE: Final = re.compile(r"\s+")
_CLAUSE: Final = re.compile(r"[,;:—–](?=\s)|[，；：、،؛]")

# The end of a text that will most likely turn out to be the end of a sentence. Digits are left out:
# "3." is too often the first half of "3.5".
_SEEMS_OVER: Final = re.compile(r"(?:([^\W\d_]{2,})\.|[!?…。！？؟۔।])[\"'”’»)\]*_]{0,4}\s*\Z")

_Kind = Literal["prose", "code"]


@dataclass(frozen=True, slots=True)
class Sentence:
    """One unit of review; ``text`` is exactly as in the input, with its leading white space."""

    text: str
    kind: _Kind = "prose"


class SentenceSplitter:
    """Feed it text as it arrives; it returns each sentence once, as early as it is certain."""

    def __init__(self, *, max_chars: int = 2000, after: str = "") -> None:
        """``max_chars``: fewer characters than this wait inside (at least 16).

        ``after``: the text that this one continues; it says whether we are inside a code block and
        whether the first character opens a line. It is not returned again.
        """
        if max_chars < MIN_MAX_CHARS:
            raise ValueError(f"max_chars must be at least {MIN_MAX_CHARS}, not {max_chars}")
        self._max = max_chars
        self._clear()
        if after:
            self._continue(after)

    def _clear(self) -> None:
        self._buf = ""
        self._start = 0  # of the sentence being read; nonzero only inside feed and flush
        self._fence: Fence | None = None  # of the code block we are in
        self._line_start = True  # the sentence being read opens a line
        self._begin()

    def _begin(self) -> None:
        """Forget what was learnt about the last sentence."""
        self._pos = self._start  # everything before it is known to hold no boundary
        self._head = -1  # the first character that is not white space; -1: not seen yet
        self._mode: Literal["head", "line", "prose"] = "head"
        self._kind: _Kind = "code" if self._fence else "prose"
        self._opening = False  # the line being read is the one with the opening fence
        self._mark: ListMark | None = None
        self._trigger = _TRIGGER

    def _continue(self, after: str) -> None:
        open_fence = None
        if "```" in after or "~~~" in after:
            self.feed(after)
            self._run(final=True)
            open_fence = self._fence
        self._clear()
        self._fence = open_fence
        self._line_start = after.rstrip(" \t")[-1:] in "\r\n"
        self._begin()

    @property
    def pending(self) -> int:
        """How many characters wait inside; fewer than ``max_chars`` between calls."""
        return len(self._buf)

    @property
    def in_code(self) -> bool:
        """Whether what comes next stands in a fenced code block, as far as can be seen."""
        return self._fence is not None

    @property
    def rest(self) -> str:
        """What waits inside, as it is."""
        return self._buf

    @property
    def seems_over(self) -> bool:
        """Whether what waits is most likely a whole sentence of prose. A guess: the next character
        may prove it wrong."""
        buf = self._buf
        if self._mode != "prose" or not buf or buf[-1].isalnum():
            return False
        found = _SEEMS_OVER.search(buf, max(0, len(buf) - 48))
        return found is not None and not (found[1] and classify(found[1]))

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

    def flush(self, *, more: bool = False) -> list[Sentence]:
        """Return the rest; the splitter is then as new, at the start of a text.

        ``more``: the text goes on after something that is not text. Then a code block stays open,
        and the next character opens a line only if the last one ended one.
        """
        out = self._run(final=True)
        if not more:
            self._clear()
        return out

    def _run(self, *, final: bool) -> list[Sentence]:
        out: list[Sentence] = []
        buf = self._buf
        size = len(buf)
        while self._start < size:
            limit = self._start + self._max
            # What lies beyond the bound must not help to decide: had it come later, the sentence
            # would have been cut without it.
            end = min(size, limit)
            cut = self._scan(end, final and end == size)
            if cut == WAIT:
                if size < limit:
                    break
                cut = self._forced(end)
            text = buf[self._start : cut]
            out.append(Sentence(text, self._kind))
            blank = text.isspace()
            self._line_start = blank and (self._line_start or LINE_BREAK.search(text) is not None)
            self._start = cut
            self._begin()
        if self._start:
            self._buf = buf[self._start :]
            self._pos -= self._start
            self._head = max(self._head - self._start, -1)
            self._start = 0
        return out

    # -- one sentence: each step returns where it ends, or WAIT ---------------------------------

    def _scan(self, end: int, final: bool) -> int:
        if self._mode == "head" and not self._read_head(end, final):
            return end if final else WAIT
        if self._mode == "line":
            return self._read_line(end, final)
        return self._read_prose(View(self._buf, self._head, end, final))

    def _read_head(self, end: int, final: bool) -> bool:
        """Find out what kind of unit opens here; False when that is not visible yet."""
        buf = self._buf
        if self._head < 0:
            found = _NOT_SPACE.search(buf, self._pos, end)
            if found is None:
                self._pos = end
                return False
            self._head = self._pos = found.start()
            if LINE_BREAK.search(buf, self._start, self._head):
                self._line_start = True
        if self._fence and self._line_start and self._fence.abandoned_by(buf[self._head]):
            self._fence = None
            self._kind = "prose"
        if self._fence:
            self._mode = "line"
            return True
        view = View(buf, self._head, end, final)
        if self._line_start:
            line = one_line(view)
            opened = fence(view) if line is False else False
            if line is None or opened is None:
                return False
            if isinstance(opened, Fence):
                self._fence = opened
                self._kind = "code"
                self._opening = True
            if line or opened:
                self._mode = "line"
                return True
        mark = list_mark(view)
        if mark is None:
            return False
        if isinstance(mark, ListMark):
            self._mark = mark
            self._pos = mark.end  # its dot ends nothing
            self._trigger = _LIST_TRIGGER
        self._mode = "prose"
        return True

    def _read_line(self, end: int, final: bool) -> int:
        """A unit that ends with its line: a heading, a table row, a line of code."""
        buf = self._buf
        found = _NEWLINE.search(buf, self._pos, end)
        if found is None and not final:
            self._pos = end
            return WAIT
        cut = content_end(buf, self._head, found.start() if found else end)
        whole_line = self._line_start and not self._opening
        if self._fence and whole_line and self._fence.closed_by(buf[self._head : cut]):
            self._fence = None
        return cut

    def _read_prose(self, view: View) -> int:
        text, head, end, final = view
        while True:
            found = self._trigger.search(text, self._pos, end)
            if found is None:
                self._pos = end
                return content_end(text, head, end) if final else WAIT
            at = self._pos = found.start()
            match text[at]:
                case "`":
                    verdict = inline_code(view, at)
                case "$":
                    verdict = dollars(view, at)
                case "\\":
                    verdict = backslash(view, at)
                case char if char in NEWLINES:
                    verdict = _newline(view, at)
                case char:
                    verdict = next_item(view, self._mark, at) if self._mark else -(at + 1)
                    if verdict < 0 and char in TERMINATORS:
                        verdict = stop(view, at)
            if verdict >= 0:
                return verdict
            self._pos = -verdict

    def _forced(self, end: int) -> int:
        """Where to cut a sentence that fills the bound: the best place in its second half."""
        buf = self._buf
        middle = end - self._max // 2
        if self._head < 0:  # white space alone: keep CR LF together
            return end - 1 if buf[end - 1] == "\r" else end
        if self._kind == "prose":
            clauses = [found.end() for found in _CLAUSE.finditer(buf, middle, end - 1)]
            if clauses and not is_mark(buf[clauses[-1]]):
                return clauses[-1]
        spaces = [found.start() for found in _SPACE.finditer(buf, max(middle, self._head + 1), end)]
        if spaces:
            return spaces[-1]
        cut = end - 1  # buf[end - 1] is visible: it says whether it belongs to what is before it
        while cut > middle and (is_mark(buf[cut]) or joins_next(buf[cut - 1])):
            cut -= 1
        return cut if cut > middle else end - 1


def _newline(view: View, at: int) -> int:
    """A line break ends the unit, unless it looks like a hard wrap inside a sentence.

    In recorded replies (bench/line_breaks.py) line breaks separate items, formulas, verses and
    paragraphs; 30 of 21,997 look like hard wraps. So a break ends the unit at once; only after a
    wide line without a stop the next character is awaited, and a lower-case letter joins the lines.
    """
    text, head, end, final = view
    cut = content_end(text, head, at)
    line = max(text.rfind("\n", head, cut) + 1, head)
    if cut - line < _WRAP_WIDTH or text[cut - 1] in ":;|)":
        return cut
    space = _SPACE.match(text, cut, end)
    assert space is not None
    if len(_NEWLINE.findall(space.group().replace("\r\n", "\n"))) > 1:
        return cut
    if space.end() >= end:
        return cut if final else WAIT
    return -space.end() if text[space.end()].islower() else cut


def split(text: str, *, max_chars: int = 2000) -> list[Sentence]:
    """The sentences of a whole text: one ``feed`` and a ``flush``."""
    splitter = SentenceSplitter(max_chars=max_chars)
    return splitter.feed(text) + splitter.flush()
