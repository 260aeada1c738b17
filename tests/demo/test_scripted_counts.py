"""The scripted upstream counts a text's tokens as it sends it."""

from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.demo.script import tokens
from stream_aligner_proxy.demo.scripted_answer import _Count


@given(st.lists(st.text(alphabet="ab1 .\n\u00e9_", max_size=9)))
def test_a_text_in_any_pieces_has_the_tokens_of_the_whole(pieces: list[str]) -> None:
    count = _Count()
    for piece in pieces:
        count.add(piece)
    assert count.tokens == len(tokens("".join(pieces)))
