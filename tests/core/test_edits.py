"""The edit distance behind `restart_on: material`."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.edits import differs_by, edit_distance

WORD = st.text("abc", max_size=12)


def by_the_book(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


@given(WORD, WORD, st.integers(0, 14))
def test_it_is_levenshteins_up_to_the_limit(a, b, limit):
    assert edit_distance(a, b, limit) == min(by_the_book(a, b), limit + 1)


@pytest.mark.parametrize(
    ("a", "b", "share", "differs"),
    [
        ("12345678", "12345679", 0.125, True),
        ("12345678", "12345679", 0.126, False),
        ("same", "same", 0.0, True),
        ("abc", "xyz", 1.0, True),
        ("abc", "xbc", 1.0, False),
    ],
)
def test_a_share_is_of_the_longer_text_and_reached_counts(a, b, share, differs):
    assert differs_by(a, b, share) is differs


def test_the_longest_sentences_are_compared_in_milliseconds():
    a, b = "abcd " * 400, "badc " * 400
    begun = time.perf_counter()
    differs_by(a, b, 0.9)
    assert time.perf_counter() - begun < 0.5  # a table of Python cells takes longer
