"""The SSE decoder: the standard's rules, and the same events for every way to cut the bytes."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.sse import SseDecoder, SseEvent, SseFrames

FIELDS = st.sampled_from(
    [
        b"data: one",
        b"data:two",
        b"data",
        b"data:  spaced",
        "data: \u2028 caf\u00e9 \u0085 \U0001f600".encode(),
        b"event: error",
        b": a comment",
        b"id: 7",
        b"retry: 10",
        b"unknown: x",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
ODD = st.lists(st.tuples(FIELDS, ENDS), max_size=20).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
# What servers really send is decoded on another path than the rest: mixed, so that each path is
# entered from each state of the other.
PLAIN = st.sampled_from([b"data: one\n\n", b'data: {"a":"b"}\n\n', b"data: \n\n", b"\xef\xbb\xbf"])
STREAMS = st.lists(PLAIN | ODD, max_size=12).map(b"".join)


def decode(data: bytes, size: int = 1 << 20, **limits: int) -> list[SseEvent]:
    decoder = SseDecoder(**limits)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.flush()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: a\n\n", [SseEvent(b"a")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data: a\r\rdata: b\r\r", [SseEvent(b"a"), SseEvent(b"b")]),
        (b"data: a\ndata: b\n\n", [SseEvent(b"a\nb")]),
        (b"data\n\n", [SseEvent(b"")]),
        (b": comment\n\ndata:  a\n\n", [SseEvent(b" a")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [SseEvent(b"a", "error"), SseEvent(b"b")]),
        (b"event: lonely\n\ndata: b\n\n", [SseEvent(b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(b"a")]),
        (b"data: no blank line", [SseEvent(b"no blank line")]),
        ("data: a\u2028b\u0085c\n\n".encode(), [SseEvent("a\u2028b\u0085c".encode())]),
    ],
)
def test_streams_are_decoded_as_the_standard_says(data: bytes, expected: list[SseEvent]) -> None:
    assert decode(data) == expected
    assert decode(data, size=1) == expected


@given(STREAMS, st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_events_do_not_depend_on_how_the_bytes_are_cut(
    data: bytes, cuts: list[int], bom: bool
) -> None:
    data = b"\xef\xbb\xbf" * bom + data
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = SseDecoder()
    events = [event for a, b in pairwise(edges) for event in decoder.feed(data[a:b])]
    assert events + decoder.flush() == decode(data) == decode(data, size=1)


def test_an_event_is_complete_as_soon_as_its_blank_line_is() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [SseEvent(b"a")]
    assert decoder.feed(b"\ndata: b\n\n") == [SseEvent(b"b")]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_over_the_limit_is_garbled_and_those_before_it_are_not_lost(size: int) -> None:
    decoder = SseDecoder(max_event_bytes=20)
    data = b"data: fine\n\n" + b"data: " + b"x" * 30 + b"\n\n"
    events: list[SseEvent] = []

    def feed_all() -> None:
        for i in range(0, len(data), size):
            events.extend(decoder.feed(data[i : i + size]))
        decoder.flush()

    with pytest.raises(UpstreamGarbled):
        feed_all()
    assert events == [SseEvent(b"fine")]


def test_many_small_lines_count_towards_the_limit_and_comments_do_not() -> None:
    assert decode(b": ping\n" * 100 + b"data: a\n\n", max_event_bytes=20) == [SseEvent(b"a")]
    with pytest.raises(UpstreamGarbled):
        decode(b"data:\n" * 100 + b"\n", max_event_bytes=20)


def test_a_long_event_in_small_pieces_takes_linear_time() -> None:
    decoder = SseDecoder()
    started = time.process_time()
    for _ in range(200_000):
        decoder.feed(b"data: xx"[:8])
    assert time.process_time() - started < 2.0


@given(STREAMS, st.integers(1, 50))
def test_frames_hold_what_the_decoder_reads_and_end_with_a_blank_line(
    data: bytes, size: int
) -> None:
    frames = SseFrames()
    whole = [frames.feed(data[i : i + size]) for i in range(0, len(data), size)]
    rest = frames.flush()
    assert all(not some or some.endswith(b"\n\n") for some in whole)
    assert b"\n\n" not in rest
    # The byte order mark was taken off once; a second one is text.
    assert decode(b"\xef\xbb\xbf" + b"".join(whole) + rest) == decode(data)
