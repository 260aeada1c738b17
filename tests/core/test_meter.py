"""The token accounting where the loop's tests do not reach: long texts and their limits."""

import time

from stream_aligner_proxy.core.meter import Meter
from stream_aligner_proxy.core.records import Usage


def meter_of(limit: int, text: str, characters: int) -> Meter:
    """A meter whose upstream wrote `text`, so many characters a token."""
    meter = Meter(limit)
    meter.open_branch()
    for at in range(0, len(text), characters):
        meter.arrived(len(text[at : at + characters]), 1)
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
