"""Which target a conversation belongs to, and which route a name."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.records import ChatRequest, Turn
from stream_aligner_proxy.upstream.routing.choosing import conversation_key, draw, session_id
from stream_aligner_proxy.upstream.routing.patterns import Pattern

KEYS = [number.to_bytes(4, "big") for number in range(4000)]


def chosen(key: bytes, weights: dict[str, float]) -> str:
    return max(weights, key=lambda name: draw(key, name, weights[name]))


def test_conversations_are_shared_by_weight() -> None:
    shares = Counter(chosen(key, {"a": 3, "b": 1}) for key in KEYS)
    assert 0.72 < shares["a"] / len(KEYS) < 0.78


@given(st.dictionaries(st.text(min_size=1), st.floats(0.01, 100), min_size=2, max_size=6))
def test_when_a_target_goes_only_its_own_conversations_move(weights: dict[str, float]) -> None:
    gone = next(iter(weights))
    left = {name: weight for name, weight in weights.items() if name != gone}
    for key in KEYS[:50]:
        before = chosen(key, weights)
        if before != gone:
            assert chosen(key, left) == before


TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["user", "assistant", "tool"]), st.text()), max_size=4
)


@given(st.text(), st.text(), TURNS, TURNS, st.text())
def test_all_turns_of_a_conversation_have_one_key(
    system: str, question: str, later: list[Turn], other: list[Turn], user: str
) -> None:
    beginning = (Turn("system", system), Turn("user", question))
    keys = {
        conversation_key(ChatRequest("m", {"user": user}, (*beginning, *turns)))
        for turns in (later, other, [])
    }
    assert len(keys) == 1


def test_another_question_user_or_instruction_is_another_conversation() -> None:
    def key(system: str, question: str, user: str) -> bytes:
        turns = (Turn("system", system), Turn("user", question))
        return conversation_key(ChatRequest("m", {"user": user}, turns))

    # The last would be the first if the parts were merely joined.
    keys = [key("a", "b", "c"), key("x", "b", "c"), key("a", "x", "c"), key("a", "b", "x")]
    keys.append(key("au", "b", "c"))
    assert len(set(keys)) == len(keys)
    assert len({session_id(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("pattern", "name", "star"),
    [
        ("gpt-4", "gpt-4", ""),
        ("gpt-4", "gpt-4o", None),
        ("gpt-*", "gpt-4o", "4o"),
        ("gpt-*", "gpt-", ""),
        ("*", "anything/at all", "anything/at all"),
        ("*-mini", "gpt-mini", "gpt"),
        ("a*a", "a", None),  # the same letter cannot be both ends
        ("a*a", "aa", ""),
        ("a.b", "axb", None),
        ("[a]?", "[a]?", ""),
    ],
)
def test_a_star_stands_for_any_text_and_nothing_else_is_special(pattern, name, star) -> None:
    assert Pattern(pattern).match(name) == star


@pytest.mark.parametrize("text", ["", "**", "a*b*"])
def test_a_pattern_has_one_star_at_most(text: str) -> None:
    with pytest.raises(ValueError, match="one \\*"):
        Pattern(text)
