"""Which questions are trained on, and that none stands in two splits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.config import SplitConfig
from training.data.near import Near, alike, triples
from training.data.rows import group_of
from training.data.split import Leak, Questions, Splits, check_splits

HALF = SplitConfig(validation=0.2, test=0.3, near=0.8)
LONG = (
    "A farmer has many sheep on the green hill behind the house and wants to count them all "
    "before the winter comes so that each gets its share of hay and water and a dry place"
)
WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join)


def split(texts: list[str], config: SplitConfig = HALF, **options: bool) -> Splits:
    questions = Questions()
    for text in texts:
        questions.add(group_of(text), text, **options)
    return questions.split(config)


def many(count: int) -> list[str]:
    """Questions that have nothing in common."""
    rng = random.Random(1)
    return [" ".join(f"{rng.getrandbits(24):x}" for _ in range(6)) for _ in range(count)]


@given(st.lists(WORDS, min_size=1, max_size=30, unique=True), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order(texts: list[str], rng: random.Random) -> None:
    shuffled = list(texts)
    rng.shuffle(shuffled)
    assert split(texts).of == split(shuffled).of


@given(st.lists(WORDS, min_size=1, max_size=30, unique=True))
def test_a_split_passes_its_own_check(texts: list[str]) -> None:
    of = split(texts).of
    check_splits(((of[group_of(text)], group_of(text), text) for text in texts), HALF.near)


def test_the_shares_are_about_those_asked_for() -> None:
    of = split(many(2000)).of
    held = list(of.values())
    assert 0.25 < held.count("test") / 2000 < 0.35
    assert 0.15 < held.count("validation") / 2000 < 0.25


def test_a_new_question_moves_no_other() -> None:
    texts = many(300)
    before, after = split(texts[:200]).of, split(texts).of
    assert all(after[group] == where for group, where in before.items())


def test_questions_nearly_the_same_stay_together() -> None:
    # Sixty questions, each in three versions that differ in a word at the end.
    texts = [f"{text} {LONG} {last}" for text in many(60) for last in ("now", "soon", "later")]
    found = split(texts, SplitConfig(0.2, 0.3, near=0.7))
    for at in range(0, len(texts), 3):
        assert len({found.of[group_of(text)] for text in texts[at : at + 3]}) == 1
    assert found.joined > 0


def test_groups_in_which_the_same_question_stands_stay_together() -> None:
    questions = Questions()
    for at, text in enumerate(many(100)):
        questions.add(f"one{at}", text)
        questions.add(f"other{at}", f"{text}!")
    of = questions.split(HALF).of
    assert all(of[f"one{at}"] == of[f"other{at}"] for at in range(100))


def test_what_is_for_evaluation_is_never_trained_on() -> None:
    held = f"{LONG} today"
    questions = Questions()
    questions.add("near", f"{LONG} tomorrow")
    for text in many(50):
        questions.add(group_of(text), text)
    questions.add("held", held, evaluation=True)
    nothing = SplitConfig(0, 0, near=0.8)
    found = questions.split(nothing)
    assert (found.of["held"], found.of["near"]) == ("test", "test")
    assert list(found.of.values()).count("train") == 50
    assert found.largest == 2


@pytest.mark.parametrize(
    ("other", "group", "why"),
    [
        ("How many legs?", group_of("How many legs?"), "stands in train and in test"),
        ("how many LEGS", "another", "have the same words"),
        (f"{LONG} tomorrow", "another", "are nearly the same"),
    ],
)
def test_a_leak_is_found(other: str, group: str, why: str) -> None:
    rows = [("train", group_of(text), text) for text in (*many(40), "How many legs?", LONG)]
    with pytest.raises(Leak, match=why):
        check_splits([*rows, ("test", group, other)], 0.8)  # type: ignore[list-item]


def test_alike_is_what_two_texts_have_in_common() -> None:
    assert alike(triples("a b c d"), triples("a b c d")) == 1
    assert alike(triples("a b c d"), triples("a b c e")) == pytest.approx(1 / 3)
    assert alike(triples("a b"), triples("a b c")) == 0
    assert alike(triples("?"), triples("?")) == 1
    assert alike(triples("?"), triples("!")) == 0


def test_nearly_all_pairs_above_the_bound_are_found() -> None:
    rng = random.Random(2)
    near, pairs = Near(), 0
    for text in many(400):
        other = f"{text} {LONG}".split()
        near.add(" ".join(other))
        other[rng.randrange(len(other))] = "else"  # three triples of 38
        near.add(" ".join(other))
        pairs += 1
    found = {tuple(sorted(pair)) for pair in near.pairs(0.8)}
    assert sum((at, at + 1) in found for at in range(0, 2 * pairs, 2)) >= 0.99 * pairs


def test_questions_of_one_form_are_joined_without_comparing_all_with_all() -> None:
    near = Near()
    count = 1500
    for at in range(count):
        near.add(f"{LONG} and {at}")
    compared = 0
    parent = list(range(count))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    def joined(a: int, b: int) -> bool:
        nonlocal compared
        compared += 1
        return root(a) == root(b)

    for a, b in near.pairs(0.8, skip=joined):
        parent[root(a)] = root(b)
    assert len({root(at) for at in range(count)}) == 1
    assert compared < count * (count - 1) / 2 * 16 / 4
