"""The token accounting where the loop's tests do not reach: long texts and their limits."""

import time
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.meter import Meter
from stream_aligner_proxy.core.records import Usage


def meter_of(limit: int, text: str, characters: int) -> Meter:
    """A meter whose upstream wrote `text`, so many characters a token."""
    meter = Meter(limit)
    meter.open_branch()
    for at in range(0, len(text), characters):
        meter.arrived(len(text[at : at + characters]), 1)
    return meter


def branch_of(limit: int, prompt: int | None, characters: int, tokens: int) -> Meter:
    """A meter whose first branch told its prompt's size, or none, and wrote one delta."""
    meter = Meter(limit)
    meter.open_branch()
    if prompt is not None:
        meter.prompt(prompt)
    meter.arrived(characters, tokens)
    return meter


def test_cutting_a_long_text_takes_no_longer_than_reading_it_a_few_times():
    text = "The quick brown foxes jumped, over lazy dogs. " * 2000
    meter = meter_of(len(text) // 5, text, 5)
    begun = time.perf_counter()
    cut = meter.cut(text)
    assert time.perf_counter() - begun < 2
    assert 0.5 < len(cut) / len(text) < 1
    assert text.startswith(cut + " ")


def test_a_text_without_white_space_is_cut_between_its_characters():
    text = "今天天气很好，我们去公园玩。" * 60
    cut = meter_of(700, text, 2).cut(text)
    assert len(cut) == 700
    assert text.startswith(cut)


def test_usage_of_changed_text_follows_the_upstreams_count_where_a_delta_is_many_tokens():
    meter = Meter(None)
    meter.open_branch()
    meter.arrived(40, 1)
    meter.arrived(40, 1)
    meter.delivered += meter.take(40)
    meter.rewritten("x" * 40)
    usage = meter.usage(Usage(5, 20), rewritten=True)
    assert usage == Usage(5, 20)
    meter.aside += 6
    assert meter.usage(Usage(5, 26), rewritten=True) == Usage(5, 26)


def test_a_word_that_fits_is_kept_whatever_white_space_follows_it():
    assert Meter(1).cut("word\n\nmore") == "word"


def test_numbers_and_signs_after_white_space_are_bounded_by_two_tokens_each():
    # As tokenizers of the Qwen and Llama families cut them.
    for text, tokens in (("1 2 3", 5), ("x = 1\tif y", 7), ("one two", 2)):
        assert Meter(tokens).cut(text) == text
        assert Meter(tokens - 1).cut(text) != text


def test_tokens_of_a_delta_across_a_border_are_lost_to_neither_side():
    meter = Meter(None)
    meter.open_branch()
    meter.arrived(80, 16)
    assert meter.take(5) == 1
    assert meter.take(75) == 15
    meter.arrived(10, 1)
    assert (meter.take(4), meter.take(6)) == (1, 0)
    assert meter.untaken == 0


def test_text_of_an_upstream_that_does_not_count_is_bounded_against_the_limit():
    words = " ".join(["word"] * 10)
    meter = branch_of(40, None, len(words), 1)
    meter.kept(words, meter.take(len(words)), cut=False)
    assert meter.remaining == 30
    counted = branch_of(40, 5, len(words), 10)
    counted.kept(words, counted.take(len(words)), cut=False)
    assert counted.remaining == 30


def test_a_server_that_tells_no_prompt_tokens_resets_nothing():
    meter = branch_of(20, 0, 50, 12)
    meter.kept("x" * 50, meter.take(50), cut=False)
    meter.open_branch()
    meter.prompt(0)
    assert meter.delivered == 12
    assert meter.remaining == 8


def test_reported_usage_is_never_above_the_limit_where_it_is_an_estimate():
    meter = branch_of(10, 5, 60, 14)
    meter.kept("x" * 20, meter.take(60), cut=True)
    usage = meter.usage(None, rewritten=True)
    assert usage is not None
    assert usage.completion_tokens <= 5
    meter.rewritten("y" * 100)
    usage = meter.usage(None, rewritten=True)
    assert usage is not None
    assert usage.completion_tokens == 10


@given(
    st.lists(
        st.sampled_from(["word ", "a", " ", "7", ".\n", "漢字。", "longerword", "  x"]), max_size=20
    ),
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_what_is_sure_to_fit_of_a_growing_text_is_never_cut_off_the_whole(pieces, limit, steps):
    text = "".join(pieces)
    meter = meter_of(limit, "abcd", 4)
    end, counted = 0, 0
    for seen in accumulate(steps, initial=1):
        end, counted = meter.sure_to_fit(text[:seen], end, counted)
        assert meter.cut(text).startswith(text[:end].rstrip())
    meter = meter_of(10_000, "abcd", 4)
    assert meter.sure_to_fit("one two thr", 0, 0)[0] == len("one two")


def test_without_a_limit_everything_fits_at_once():
    assert Meter(None).sure_to_fit("one tw", 0, 0)[0] == len("one tw")


def test_the_details_of_the_only_branch_are_kept_when_its_text_was_rewritten():
    meter = branch_of(100, 10, 40, 10)
    meter.rewritten("x" * 20)
    details = {"prompt_tokens_details": {"cached_tokens": 8}, "total_tokens": 20}
    usage = meter.usage(Usage(10, 10, details), rewritten=True)
    assert usage is not None
    assert usage.prompt_tokens == 10
    assert usage.completion_tokens < 10
    assert usage.details == {"prompt_tokens_details": {"cached_tokens": 8}}
    meter.open_branch()
    meter.arrived(4, 1)
    continued = meter.usage(Usage(15, 1, details), rewritten=True)
    assert continued is not None
    assert continued.details == {}
