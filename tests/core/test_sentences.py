"""The splitter's contract: what a sentence carries, when it comes out, and what waits inside."""

from __future__ import annotations

import statistics
import time

import pytest

from stream_aligner_proxy.core.sentences import Sentence, SentenceSplitter, split


def texts(sentences: list[Sentence]) -> list[str]:
    return [sentence.text for sentence in sentences]


def marked(text: str) -> list[tuple[str, str]]:
    return [(sentence.text, sentence.kind) for sentence in split(text)]


def characters_before_first(text: str) -> int:
    """How many characters must arrive before the first sentence is out."""
    splitter = SentenceSplitter()
    for count, char in enumerate(text, 1):
        if splitter.feed(char):
            return count
    raise AssertionError("no sentence before the end of the text")


def test_leading_white_space_belongs_to_the_next_sentence() -> None:
    assert texts(split("  A b.  C d.\n\n- e")) == ["  A b.", "  C d.", "\n\n- e"]


def test_white_space_at_the_end_of_the_text_is_a_sentence_of_its_own() -> None:
    assert texts(split("A b. \n")) == ["A b.", " \n"]
    assert texts(split("A b \n")) == ["A b", " \n"]
    assert texts(split(" \n")) == [" \n"]


def test_no_text_gives_no_sentence() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("") == []
    assert splitter.flush() == []


def test_a_flushed_splitter_is_as_new() -> None:
    splitter = SentenceSplitter()
    splitter.feed("```\ncode")
    splitter.flush()
    assert splitter.pending == 0
    assert splitter.feed("# Title. One\n") == [Sentence("# Title. One")]
    assert splitter.flush() == [Sentence("\n")]


def test_pending_counts_the_characters_inside() -> None:
    splitter = SentenceSplitter()
    assert texts(splitter.feed("One. Two")) == ["One."]
    assert splitter.pending == len(" Two")


@pytest.mark.parametrize(
    ("text", "lookahead"),
    [
        ("It works. Then it", len(" T")),
        ("It works.\nThen", len("\n")),
        ("It works!\r\nThen", len("\r")),
        ("A title\nThen", len("\n")),
        ("It works? “Yes", len(" “Y")),
        ("It costs 3.50. Then", len(" T")),
        ("It costs 3. Then", len(" Then") + 1),
        ("He met Acme Inc. The man", len(" The") + 1),
        ("很好。我", 1),
        ("很好。\n", 1),
        ("कहा। वह", 1),
        ("هل هذا؟ نعم", 1),
    ],
)
def test_a_sentence_is_out_as_soon_as_its_end_is_certain(text: str, lookahead: int) -> None:
    text = text if text[-1] in "\n" else text + " and more. And more."
    first = split(text)[0].text
    assert characters_before_first(text) <= len(first) + lookahead


def test_an_open_mark_does_not_hold_the_text_for_long() -> None:
    plain = "a b. Cd " * 200
    assert characters_before_first("`" + plain) < 180
    assert characters_before_first("`" + "ab\n" + plain) < 10
    assert characters_before_first("\\( " + plain) < 180
    assert characters_before_first("$$ " + plain) < 1020
    assert characters_before_first("$$ ab\n\n" + plain) < 10


def test_fenced_code_is_cut_at_lines_and_called_code() -> None:
    assert marked("Do:\n\n```py\nx = 1. Y\n\nz = 2\n```\nDone. Yes.") == [
        ("Do:", "prose"),
        ("\n\n```py", "code"),
        ("\nx = 1. Y", "code"),
        ("\n\nz = 2", "code"),
        ("\n```", "code"),
        ("\nDone.", "prose"),
        (" Yes.", "prose"),
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("~~~\n```\na. B\n~~~~\nEnd.", 4),  # the other mark and a longer run
        ("````md\n```\na\n```\n````\nEnd.", 5),  # a longer fence holds shorter ones
        ("  ```\n  a\n  ```\nEnd.", 3),  # indented
        ("- ```py\n  a\n  ```\nEnd.", 3),  # in a list item
        ("1. ```py\n   a\n   ```\nEnd.", 3),
        ("> ```\n> a\n> ```\nEnd.", 3),  # in a quotation
        ("> ```\n> a\n\nEnd.", 2),  # the quotation ends, and the code with it
        ("```\n``` a\n```\nEnd.", 3),  # a closing fence carries no words
        ("~~~ `a`\nb\n~~~\nEnd.", 3),
    ],
)
def test_a_code_block_ends_at_its_own_fence(text: str, code: int) -> None:
    whole = split(text)
    assert [sentence.kind for sentence in whole] == ["code"] * code + ["prose"]
    splitter = SentenceSplitter()
    assert [s for char in text for s in splitter.feed(char)] + splitter.flush() == whole


def test_code_that_is_never_closed_is_code_to_the_end() -> None:
    assert {kind for _, kind in marked("```\na. B\n\nc")} == {"code"}
    assert marked("```") == [("```", "code")]


@pytest.mark.parametrize("text", ["```a``` is. It", "Use ```\nx. Y", "``\na", "a\u2028```\nb. C"])
def test_what_opens_no_code_block_is_prose(text: str) -> None:
    assert {kind for _, kind in marked(text)} == {"prose"}


def test_a_continued_text_keeps_its_code_block() -> None:
    inside = SentenceSplitter(after="Text.\n```py\nx = 1")
    assert inside.feed("\ny. Z\n```\nEnd.\n") == [
        Sentence("\ny. Z", "code"),
        Sentence("\n```", "code"),
        Sentence("\nEnd."),
    ]
    closed = SentenceSplitter(after="Text.\n```py\nx = 1\n```")
    assert closed.feed("\nEnd.\n") == [Sentence("\nEnd.")]


def test_a_continued_text_opens_a_line_only_after_a_line_break() -> None:
    assert texts(SentenceSplitter(after="A.").feed("# b. C d")) == ["# b."]
    assert texts(SentenceSplitter(after="A.\n").feed("# b. C d")) == []


def test_a_sentence_that_is_too_long_is_cut_at_a_clause() -> None:
    text = "aaaa bbbb cccc, dddd eeee ffff gggg"
    assert texts(split(text, max_chars=24)) == ["aaaa bbbb cccc,", " dddd eeee ffff gggg"]


def test_without_a_clause_it_is_cut_before_white_space() -> None:
    assert texts(split("aaaa bbbb cccc dddd eeee", max_chars=16)) == [
        "aaaa bbbb cccc",
        " dddd eeee",
    ]


def test_a_long_line_of_code_is_cut_at_white_space_alone() -> None:
    assert texts(split("~~~\naaa,bbb, ccc ddd eee fff", max_chars=16))[1:] == [
        "\naaa,bbb, ccc",
        " ddd eee fff",
    ]


def test_without_white_space_it_is_cut_between_characters_not_within_one() -> None:
    text = "e\u0301" * 40 + "👩\u200d👩" * 10
    parts = texts(split(text, max_chars=16))
    assert "".join(parts) == text
    assert len(parts) > 3
    assert not any(part.startswith(("\u0301", "\u200d")) for part in parts)
    assert not any(part.endswith("\u200d") for part in parts)


def test_a_flood_of_white_space_is_bounded_and_keeps_line_ends_whole() -> None:
    splitter = SentenceSplitter(max_chars=16)
    out = [s.text for _ in range(50) for s in splitter.feed("\r\n") + splitter.feed(" ")]
    assert splitter.pending < 16
    assert not any(part.endswith("\r") or part.startswith("\n") for part in out)
    assert [len(part) for part in texts(split(" " * 40, max_chars=16))] == [16, 16, 8]


def test_a_bound_too_small_to_work_with_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        SentenceSplitter(max_chars=15)


LONG = {
    "prose": "The cat sat on the mat, e.g. here. Then it left at 5 p.m. on Monday! ",
    "no boundary": "word ",
    "white space": " ",
    "stops and white space": "a." + " " * 500,
    "open code": "` a b ",
    "open formula": "$$ x ",
    "stops": ".",
    "cjk": "很好。",
    "fence": "```\n",
    "lists": "1) Wash 2) Dry ",
    "no space": "a",
}


@pytest.mark.parametrize("name", LONG)
def test_ten_times_the_text_costs_about_ten_times_the_time(name: str) -> None:
    """Quadratic work would cost a hundred times as much; medians, so a hiccup does not count."""

    def seconds(text: str) -> float:
        began = time.process_time()
        splitter = SentenceSplitter()
        for i in range(0, len(text), 3):
            splitter.feed(text[i : i + 3])
        splitter.flush()
        return time.process_time() - began

    # Longer than the bound, so that both lengths are past any cost that grows up to it.
    short = (LONG[name] * 6000)[:6000]
    seconds(short)
    small = statistics.median(seconds(short) for _ in range(7))
    large = statistics.median(seconds(short * 10) for _ in range(3))
    assert large < 20 * small
