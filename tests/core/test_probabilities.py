"""Log probabilities find the text that they belong to."""

from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.probabilities import Probabilities


def entry(token: str | bytes) -> dict:
    raw = token if isinstance(token, bytes) else token.encode()
    return {"token": raw.decode(errors="replace"), "logprob": -1.0, "bytes": list(raw)}


def held(*tokens: str | bytes, branch: int = 0) -> Probabilities:
    probabilities = Probabilities()
    probabilities.arrived(branch, [entry(token) for token in tokens])
    return probabilities


def texts(entries) -> list[str]:
    return [bytes(one["bytes"]).decode(errors="replace") for one in entries]


def test_a_token_across_the_border_goes_with_the_sentence_in_which_it_begins():
    probabilities = held("One", ". Tw", "o.", "<end>")
    assert texts(probabilities.take(0, 0, "One.")) == ["One", ". Tw"]
    assert texts(probabilities.take(0, 4, " Two.")) == ["o."]


def test_the_bytes_of_one_character_may_come_in_several_tokens():
    snow = "❄".encode()
    probabilities = held("It ", snow[:1], snow[1:], ". ", "Yes.")
    assert len(probabilities.take(0, 0, "It ❄. ")) == 4
    assert texts(probabilities.take(0, 6, "Yes.")) == ["Yes."]


def test_tokens_that_do_not_add_up_to_the_text_are_not_handed_out():
    probabilities = held("One", " two.", " Three.")
    assert probabilities.take(0, 0, "One too.") == ()
    assert texts(probabilities.take(0, 8, " Three.")) == [" Three."]
    assert held("One").take(0, 0, "One two.") == ()


def test_tokens_of_text_that_nobody_asked_for_are_let_go_of():
    probabilities = held("One.", " Two.", " Three.")
    assert texts(probabilities.take(0, 9, " Three.")) == [" Three."]
    assert probabilities.take(0, 0, "One.") == ()


def test_branches_and_tokens_without_bytes_are_told_apart():
    probabilities = held("One.")
    probabilities.arrived(1, [{"token": "Two."}, {"token": None}, {"bytes": [999]}])
    assert [one["token"] for one in probabilities.take(1, 0, "Two.")] == ["Two."]
    assert probabilities.take(2, 0, "x") == ()
    assert texts(probabilities.take_all(0)) == ["One."]
    assert probabilities.take_all(0) == probabilities.take_all(7) == ()


@given(st.text(min_size=1, max_size=40), st.lists(st.integers(1, 7)), st.lists(st.integers(1, 7)))
def test_all_tokens_are_handed_out_once_in_order_however_text_and_tokens_are_cut(
    text, cuts, borders
):
    raw = text.encode("utf-8", "replace")
    text = raw.decode()
    tokens, at = [], 0
    for cut in [*cuts, len(raw)]:
        if at < len(raw):
            tokens.append(raw[at : at + cut])
            at += cut
    probabilities = held(*tokens)
    found, at = [], 0
    for border in [*borders, len(text)]:
        if at < len(text):
            piece = text[at : at + border]
            found += probabilities.take(0, at, piece)
            at += len(piece)
    assert [bytes(one["bytes"]) for one in found] == tokens
