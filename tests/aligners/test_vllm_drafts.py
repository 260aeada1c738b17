"""What is proposed to vLLM's engine, by a simulation of its steps. Needs no vLLM."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.aligners.vllm_drafts import Marks, SentenceProposer, propose

OPEN, WHOLE, CLOSE, KEEP, END = 1, 2, 3, 4, 5
MARKS = Marks((OPEN, WHOLE), CLOSE, END, KEEP)
SENTENCE = list(range(100, 140))


def prompt(sentence: list[int]) -> list[int]:
    return [7, 100, 101, OPEN, *sentence, CLOSE]


def steps(sentence: list[int], output: list[int], room: int = 64) -> int:
    """Engine steps until `output` is written: each gives what was guessed right and one more."""
    ids, at, count = prompt(sentence), 1, 1
    while at < len(output):
        guess = propose(np.array([*ids, *output[:at]], np.int32), MARKS, room)
        assert len(guess) <= room
        run = 0
        while run < len(guess) and at + run < len(output) - 1 and guess[run] == output[at + run]:
            run += 1
        at += run + 1
        count += 1
    return count


def test_a_sentence_left_as_it_is_takes_two_steps() -> None:
    assert steps(SENTENCE, [*SENTENCE, END]) == 2
    assert steps(SENTENCE, [*SENTENCE, END], room=16) == 4


def test_after_the_keep_token_only_the_end_is_proposed() -> None:
    assert steps(SENTENCE, [KEEP, END]) == 2
    assert propose(np.array([*prompt(SENTENCE), KEEP, END], np.int32), MARKS, 8) == []


@pytest.mark.parametrize(
    "output",
    [
        [*SENTENCE[:20], 999, *SENTENCE[21:]],
        [*SENTENCE[:20], *SENTENCE[22:]],
        [*SENTENCE[:20], 998, 999, *SENTENCE[20:]],
        [999, *SENTENCE[1:]],
    ],
    ids=["replaced", "deleted", "inserted", "at the start"],
)
def test_after_a_difference_the_place_is_found_again(output: list[int]) -> None:
    assert steps(SENTENCE, [*output, END]) <= 8


def test_a_sentence_that_is_rewritten_altogether_stops_being_proposed() -> None:
    ids = [*prompt(SENTENCE), *range(500, 520)]
    assert len(propose(np.array(ids, np.int32), MARKS, 64)) < 8


def test_marks_in_the_output_are_no_marks_of_the_prompt() -> None:
    ids = [*prompt(SENTENCE), *SENTENCE[:3], OPEN, CLOSE, *SENTENCE[3:6]]
    assert propose(np.array(ids, np.int32), MARKS, 4) == SENTENCE[6:10]


@given(
    st.lists(st.integers(100, 106), max_size=30),
    st.lists(st.integers(100, 106), min_size=1, max_size=30),
)
def test_every_step_goes_on_whatever_the_output_is(sentence: list[int], output: list[int]) -> None:
    assert 1 <= steps(sentence, [*output, END]) <= len(output) + 1


def test_rows_are_independent_and_the_window_is_not_exceeded() -> None:
    config = SimpleNamespace(
        additional_config=MARKS.section(),
        speculative_config=SimpleNamespace(num_speculative_tokens=16),
        model_config=SimpleNamespace(max_model_len=64),
    )
    proposer = SentenceProposer(config)
    rows = [
        [*prompt(SENTENCE), 100],  # has begun
        [*prompt(SENTENCE)[:20]],  # its prompt is still being read
        [*prompt(SENTENCE), *SENTENCE[:15]],  # near the end of the window
        [7, 7, 7, 100],  # not one of ours
    ]
    ids = np.zeros((len(rows), 64), np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    assert proposer.propose([[100], [], [114], [100]], lengths, ids) == [
        SENTENCE[1:17],
        [],
        SENTENCE[15:18],
        [],
    ]
