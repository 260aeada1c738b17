"""Rule 1 for any text: lossless, independent of chunking, bounded; and the tests can fail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.core.sentences import Sentence, SentenceSplitter, split

# Rich in whatever the rules look at; words are short, so that they meet often.
PIECES = [
    *[". ", ".", "...", "…", ". . .", "! ", "?", "?!", "。", "！", "？", "．", "॥", "।", "؟", "۔"],
    *[" ", "  ", "\u00a0", "\t", "\n", "\r\n", "\r", "\n\n", "\u2028", "\u3000", "\x85"],
    *["`", "``", "```", "```py\n", "~~~", "~~~~", "$", "$$", "\\", "\\[", "\\]", "\\(", "\\)"],
    *["#", "# ", "|", "> ", "- ", "* ", "+", "• ", "⁃", "1.", "2.", "1)", "2) ", "2.)", "a. "],
    *['"', "'", "“", "”", "«", " »", "(", ")", "[", "]", "[1]", "（", "）", "「", "」", "』"],
    *[
        "**",
        "*",
        "_",
        "~",
        ":)",
        ":",
        ";",
        ",",
        "，",
        "、",
        "—",
        "-",
        "=",
        "%",
        "<",
        "</b>",
        "<br>",
    ],
    *["e\u0301", "\u0301", "\u200d", "\ufe0f", "😊", "👍🏽", "🏽", "\ud83d", "\ude00", "नि"],
    *["A", "I", "M", "The", "then", "Dr", "e.g", "U.S", "p.m", "z. B", "No", "Fig", "etc", "Inc"],
    *["am 3", "Oktober", "Step 1", "3.14", "12", "x", "word", "とは", "私", "http://a.b/c?d"],
    *["w" * 30, "long words " * 8, "x" * 240],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60)
BOUNDS = st.sampled_from([16, 17, 24, 40, 64, 300, 2000])


def chunked(splitter: SentenceSplitter, text: str, cuts: list[int]) -> list[Sentence]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    out = [s for a, b in itertools.pairwise(edges) for s in splitter.feed(text[a:b])]
    return out + splitter.flush()


@settings(max_examples=400, deadline=None)
@given(TEXTS, BOUNDS, st.lists(st.integers(0, 300), max_size=30))
@example("؟\u00a0. 2.)", 16, [2])
@example("“A.” `b. C", 2000, [4])
@example("1.) The first 2.) The second", 2000, [15, 16, 17])
def test_no_chunking_changes_the_text_or_its_boundaries(
    text: str, bound: int, cuts: list[int]
) -> None:
    whole = split(text, max_chars=bound)
    assert "".join(sentence.text for sentence in whole) == text
    assert chunked(SentenceSplitter(max_chars=bound), text, cuts) == whole
    assert chunked(SentenceSplitter(max_chars=bound), text, list(range(len(text)))) == whole


@settings(max_examples=200, deadline=None)
@given(TEXTS, BOUNDS)
def test_what_waits_inside_is_bounded_and_accounted_for(text: str, bound: int) -> None:
    splitter = SentenceSplitter(max_chars=bound)
    out = 0
    for count, char in enumerate(text, 1):
        out += sum(len(sentence.text) for sentence in splitter.feed(char))
        assert splitter.pending == count - out
        assert splitter.pending < bound
    splitter.flush()
    assert splitter.pending == 0


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_no_sentence_is_empty_or_ends_in_white_space_but_the_last(text: str) -> None:
    *others, last = [*split(text), Sentence("end")]
    if others and others[-1].text.isspace():
        others.pop()
    for sentence in others:
        assert sentence.text
        assert not sentence.text[-1].isspace()
    assert last.text


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_what_is_out_never_depends_on_what_comes_later(first: str, second: str) -> None:
    out = SentenceSplitter().feed(first)
    assert split(first + second)[: len(out)] == out


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_no_cut_falls_before_a_combining_mark(text: str) -> None:
    for sentence in split(text)[1:]:
        assert sentence.text[0] not in "\u0301\u200d\ufe0f🏽\ude00"


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_splitter_can_be_used_again(text: str) -> None:
    splitter = SentenceSplitter()
    first = splitter.feed(text) + splitter.flush()
    assert splitter.feed(text) + splitter.flush() == first


class Hasty(SentenceSplitter):
    """Decides with whatever it has seen, as if every chunk were the last."""

    def feed(self, text: str) -> list[Sentence]:
        self._buf += text
        return self._run(final=True)


class Careless(SentenceSplitter):
    """Drops white space between sentences."""

    def feed(self, text: str) -> list[Sentence]:
        return [Sentence(sentence.text.strip()) for sentence in super().feed(text)]


@pytest.mark.parametrize("broken", [Hasty, Careless])
def test_the_property_notices_a_broken_splitter(broken: type[SentenceSplitter]) -> None:
    text = "It was Dr. Smith. He left at 5 p.m. on Monday. It rained."
    assert chunked(broken(), text, list(range(len(text)))) != split(text)
