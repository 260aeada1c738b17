"""Deltas of a whole reply are joined as SDKs join them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.api.faces.describing import joined, merge


def gathered(*deltas: dict[str, Any]) -> dict[str, Any]:
    into: dict[str, Any] = {}
    for delta in deltas:
        for key, value in delta.items():
            merge(into, key, value)
    return joined(into)


def test_strings_and_lists_grow_objects_merge_and_the_rest_replaces() -> None:
    told = gathered(
        {"a": "Hm", "l": [1], "o": {"name": "add", "arguments": ""}, "n": 1, "z": None},
        {"a": "m", "l": [2], "o": {"arguments": '{"a":'}, "n": 2},
        {"a": ". ", "l": [], "o": {"arguments": "1}"}, "n": None, "z": "now"},
    )
    assert told == {
        "a": "Hmm. ",
        "l": [1, 2],
        "o": {"name": "add", "arguments": '{"a":1}'},
        "n": 2,
        "z": "now",
    }


def test_a_text_that_has_grown_can_be_replaced_by_what_is_none() -> None:
    assert gathered({"a": "x"}, {"a": "y"}, {"a": ["z"]}) == {"a": ["z"]}


def test_deltas_stay_as_they_were() -> None:
    first: dict[str, Any] = {"l": [1], "o": {"t": "a", "l": ["x"]}}
    told = gathered(first, {"l": [2], "o": {"t": "b", "l": ["y"]}})
    assert told == {"l": [1, 2], "o": {"t": "ab", "l": ["x", "y"]}}
    assert first == {"l": [1], "o": {"t": "a", "l": ["x"]}}


@given(st.lists(st.text(), min_size=1))
def test_a_text_in_any_pieces_is_that_text(pieces: list[str]) -> None:
    deltas = [{"reasoning": piece, "call": {"arguments": piece}} for piece in pieces]
    text = "".join(pieces)
    assert gathered(*deltas) == {"reasoning": text, "call": {"arguments": text}}
