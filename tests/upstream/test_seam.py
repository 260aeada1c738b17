"""The seam between a text and what an upstream writes when it is told to go on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.upstream.seam import BeganAgain, Seam

PREFIX = "Anna has 3 apples in her bag. She eats one of them on the way home."
REST = (
    " So she has 2 apples left, and gives one to Ben, who is hungry. That leaves one for tomorrow."
)


def joined(prefix: str, written: str, step: int = 7) -> str:
    seam = Seam(prefix)
    pieces = [written[i : i + step] for i in range(0, len(written), step)]
    return "".join([seam.feed(piece) for piece in pieces] + [seam.feed("", last=True)])


@given(st.integers(1, 60), st.integers(0, len(REST)))
def test_a_plain_continuation_passes_as_it_is_however_it_is_cut(step: int, end: int) -> None:
    written = REST[:end]
    assert joined(PREFIX, written, step) == (written if written.strip() else "")


@given(st.integers(12, len(PREFIX)), st.integers(1, 50))
def test_repeated_words_are_dropped_whatever_their_number(length: int, step: int) -> None:
    while length < len(PREFIX) and PREFIX[-length - 1] != " ":
        length += 1
    assert joined(PREFIX, PREFIX[-length:] + REST, step) == REST


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("So 2 are left.", " So 2 are left."),  # the space was lost
        ("\n\nSo 2 are left.", "\n\nSo 2 are left."),
        (", she says.", ", she says."),
        ("Sure, here is the continuation:\n\nSo 2 are left.", " So 2 are left."),
        ("  ", ""),
        ("", ""),
    ],
)
def test_small_liberties_are_mended(written: str, expected: str) -> None:
    assert joined(PREFIX, written) == expected


def test_chinese_gets_no_space() -> None:
    assert joined("安娜有三个苹果。", "她吃了一个。") == "她吃了一个。"


def test_quotes_and_white_space_of_a_repetition_need_not_be_the_same() -> None:
    prefix = 'She said "I have two of them left."'
    assert (
        joined(prefix, "She said  “I have two of them left.” Then she went.") == " Then she went."
    )


@pytest.mark.parametrize(
    "written",
    [
        "Anna has 4 apples in her bag. She eats two of them on the way home. So she has 2 left.",
        "Anna has 3 apples in a bag. She eats one of them at home. So 2 are left for her.",
    ],
)
def test_the_answer_begun_again_is_told(written: str) -> None:
    with pytest.raises(BeganAgain):
        joined(PREFIX, written)


@pytest.mark.parametrize(
    "written",
    [
        " Ben has 3 pears in his bag. He eats none of them on the way home, for he is not hungry.",
        " Anna then has 2 apples, and gives both of them to Ben, who has been hungry all day long.",
        " So.",
    ],
)
def test_a_sentence_that_is_only_like_the_first_is_a_continuation(written: str) -> None:
    assert joined(PREFIX, written) == written


def test_text_is_held_no_longer_than_it_takes_to_tell() -> None:
    seam = Seam(PREFIX)
    given_out, fed = "", 0
    for sign in REST * 3:
        given_out += seam.feed(sign)
        fed += 1
        if given_out:
            break
    assert fed <= 110
    assert seam.feed("x") == "x"


def test_the_answer_as_it_was_before_its_correction_is_the_answer_begun_again() -> None:
    seam = Seam("Good one.", "Bad one. Two.")
    with pytest.raises(BeganAgain):
        seam.feed("Bad one. Two.", last=True)
    seam = Seam("Good one.", "Bad one. Two.")
    assert seam.feed(" Two.", last=True) == " Two."
