"""The dial: when an answer begins with keep, and with what it begins otherwise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.aligners.dial import bias, decide

KEEP = 7
# Rounded, so that sums and differences of them are exact and ties are ties.
chances = st.dictionaries(
    st.integers(0, 12), st.integers(-400, 0).map(lambda n: n / 16), min_size=1, max_size=8
)
inner = st.floats(0.001, 0.999)


@given(chances)
def test_in_the_middle_it_is_what_the_model_would_say(first: dict[int, float]) -> None:
    chosen = decide(first, KEEP, 0.5)
    assert first.get(chosen) == max(first.values())
    assert (chosen == KEEP) == (first.get(KEEP) == max(first.values()))


@given(chances)
def test_at_the_ends_it_keeps_all_or_changes_all_it_can(first: dict[int, float]) -> None:
    assert decide(first, KEEP, 0) == KEEP
    assert (decide(first, KEEP, 1) == KEEP) == (set(first) == {KEEP})


@given(chances, inner, inner)
def test_turning_it_up_never_turns_a_change_into_keep(
    first: dict[int, float], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if decide(first, KEEP, high) == KEEP:
        assert decide(first, KEEP, low) == KEEP


@given(chances, inner)
def test_what_is_not_keep_is_the_best_of_the_others(first: dict[int, float], dial: float) -> None:
    chosen = decide(first, KEEP, dial)
    if chosen != KEEP:
        assert first[chosen] == max(v for token, v in first.items() if token != KEEP)


@pytest.mark.parametrize(("strength", "chosen"), [(0.19, KEEP), (0.2, KEEP), (0.21, 3)])
def test_odds_of_one_to_four_turn_at_a_fifth(strength: float, chosen: int) -> None:
    keep = math.log(0.2)
    # Four to one against keeping, in whole ulps of the bias that undoes it.
    assert decide({KEEP: keep, 3: keep + bias(0.2), 4: -9.0}, KEEP, strength) == chosen


def test_a_keep_that_was_not_among_the_likeliest_is_chosen_at_the_lowest_end_only() -> None:
    assert decide({3: -0.1, 4: -3.0}, KEEP, 0.01) == 3
    assert decide({3: -0.1, 4: -3.0}, KEEP, 0) == KEEP
