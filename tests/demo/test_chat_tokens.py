"""Text in messages stays text, and no character is ever split."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import ConfigError, RequestError
from stream_aligner_proxy.demo.chat_tokens import ChatTokens
from stream_aligner_proxy.demo.engine import StopScanner
from tests.demo.tiny import SPECIAL, build


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> ChatTokens:
    return ChatTokens(build(tmp_path_factory.mktemp("tiny")))


HOSTILE = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6), st.sampled_from(["\u2028", "🍎"]))
).map("".join)


@given(question=HOSTILE, answer=HOSTILE)
def test_text_of_messages_never_becomes_a_control_token(
    tokens: ChatTokens, question: str, answer: str
) -> None:
    user, assistant = (tokens.encode(t, control=True)[0] for t in ("<|user|>", "<|assistant|>"))
    ids = tokens.render(
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    asked, said = tokens.encode(question), tokens.encode(answer)
    assert ids == [user, *asked, assistant, *said]
    controls = {tokens.encode(mark, control=True)[0] for mark in SPECIAL}
    assert not controls & {*asked, *said}


@given(st.text())
def test_decoding_gives_the_text_back_and_every_step_is_whole_characters(
    tokens: ChatTokens, text: str
) -> None:
    decoder = tokens.decoder()
    steps = [decoder.step(token) for token in tokens.encode(text)]
    assert "".join(steps) + decoder.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in step for step in steps)


def test_a_closed_assistant_message_is_followed_by_a_new_turn(tokens: ChatTokens) -> None:
    ids = tokens.render([{"role": "assistant", "content": "Hi"}])
    end = tokens.encode("<|eos|><|assistant|>", control=True)
    assert ids[-2:] == end


def test_a_refusal_of_the_template_is_the_clients_error(tokens: ChatTokens) -> None:
    with pytest.raises(RequestError, match="unknown role"):
        tokens.render([{"role": "tool", "content": "x"}])


def test_a_directory_without_a_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        ChatTokens(tmp_path)


@given(
    st.lists(st.text("ab.", max_size=4), max_size=12),
    st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_found_however_the_text_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    scanner = StopScanner(tuple(stops))
    text = "".join(pieces)
    got = "".join(scanner.feed(piece) for piece in pieces)
    if not scanner.hit:
        got += scanner.flush()
    assert scanner.hit == any(stop in text for stop in stops)
    assert text.startswith(got)
    assert not any(stop in got for stop in stops)
    if not scanner.hit:
        assert got == text
