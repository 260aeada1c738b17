"""What the splitter's rules share: the view of one sentence, and how a verdict is written.

A verdict is an ``int``:

- ``WAIT`` (0): more text is needed;
- positive: the sentence ends before this offset;
- negative: nothing ends here, go on scanning at ``-verdict``.

Rule: a verdict other than ``WAIT`` is the same for every longer text. So boundaries cannot depend
on how the text was chunked.
"""

from __future__ import annotations

import unicodedata
from typing import Final, NamedTuple

WAIT: Final = 0
NEWLINES: Final = "\n\r\v\f\x85\u2028\u2029"


class View(NamedTuple):
    """What a rule may look at: one sentence's text, as far as it is visible."""

    text: str
    start: int  # of the sentence, after its leading white space
    end: int  # of what is visible
    final: bool  # nothing follows ``end``


def content_end(text: str, start: int, end: int) -> int:
    """The end of ``text[start:end]`` without its trailing white space."""
    while end > start and text[end - 1].isspace():
        end -= 1
    return end


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


def joins_next(char: str) -> bool:
    """A character that the next one belongs to: zero-width joiner, high surrogate."""
    return char == "\u200d" or "\ud800" <= char <= "\udbff"
