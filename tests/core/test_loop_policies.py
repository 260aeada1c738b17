"""Policies: when to restart, how many reviews, merged sentences, how many at once; what is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.core.events import (
    BranchEnded,
    CloseBranch,
    Deliver,
    Finish,
    OpenBranch,
    PartArrived,
    ReviewDone,
    StartReview,
    TextArrived,
)
from stream_aligner_proxy.core.line import Unit
from stream_aligner_proxy.core.records import ChatRequest, Mode, Policy, Verdict
from stream_aligner_proxy.core.shadow import ShadowLoop
from stream_aligner_proxy.core.window import Window
from tests.core.scripts import CONVERSATION, KEEP, loop_of, of, settled, texts
from tests.core.simulation import Simulation


def outcomes(actions) -> list[str]:
    return [d.unit.outcome for d in of(Deliver, actions) if d.unit]


# --- restart_on -----------------------------------------------------------------------------


def test_a_small_edit_keeps_the_branch_and_asks_again_about_what_assumed_the_old_text():
    loop = loop_of(Policy(restart_on="material", material_edit=0.2))
    loop.handle(TextArrived(0, "There are 12 left. So be it. F"))
    actions = loop.handle(ReviewDone(0, Verdict("There are 13 left.")))
    assert texts(actions) == ["There are 13 left."]
    assert of(CloseBranch, actions) == []
    [again] = of(StartReview, actions)
    assert (again.request.committed, again.request.sentence) == ("There are 13 left.", "So be it.")


def test_a_material_edit_restarts():
    loop = loop_of(Policy(restart_on="material", material_edit=0.2))
    loop.handle(TextArrived(0, "There are 12 left. So"))
    assert of(OpenBranch, loop.handle(ReviewDone(0, Verdict("I do not know how many."))))


# --- max_reviews ----------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (1, 1), (2, 2)])
def test_only_the_first_sentences_are_reviewed_and_the_rest_passes_as_it_comes(most, expected):
    loop = loop_of(Policy(max_reviews=most))
    actions = settled(loop, loop.handle(TextArrived(0, "One. Two. Three. F")), lambda s: KEEP)
    assert outcomes(actions) == ["keep"] * expected + ["passed"] * (3 - expected)
    assert texts(loop.handle(TextArrived(0, "our. Five"))) == [" Four."]
    assert loop.cost.reviews == expected
    assert loop.cost.skipped == 4 - expected


def test_sentences_that_a_rewrite_threw_away_do_not_use_up_reviews():
    loop = loop_of(Policy(max_reviews=2))
    loop.handle(TextArrived(0, "One. Two. Three. F"))
    loop.handle(ReviewDone(1, KEEP))
    loop.handle(ReviewDone(0, Verdict("1.")))
    actions = loop.handle(TextArrived(1, " Zwei. Drei. V"))
    [started] = of(StartReview, actions)
    assert started.request.sentence == "Zwei."
    assert outcomes(loop.handle(ReviewDone(started.review, KEEP))) == ["keep", "passed"]


def test_a_whole_answer_is_reviewed_whatever_max_reviews_says():
    loop = loop_of(Policy(mode=Mode.WHOLE, max_reviews=0))
    loop.handle(TextArrived(0, "One. Two."))
    assert of(StartReview, loop.handle(BranchEnded(0, "stop")))


def test_shadow_mode_records_what_max_reviews_would_let_pass():
    loop = ShadowLoop(ChatRequest("m", {}, CONVERSATION), Policy(max_reviews=1))
    loop.start()
    actions = loop.handle(TextArrived(0, "One. Two. T"))
    assert len(of(StartReview, actions)) == 1
    assert outcomes(actions) == ["passed"]
    assert loop.cost.skipped == 1


def test_shadow_mode_records_where_a_rewritten_sentence_began():
    loop = ShadowLoop(ChatRequest("m", {}, CONVERSATION), Policy())
    loop.start()
    actions = loop.handle(TextArrived(0, "One. Two. T"))
    [_, second] = of(StartReview, actions)
    [recorded] = of(Deliver, loop.handle(ReviewDone(second.review, Verdict("Zwei."))))
    assert recorded.unit is not None
    assert recorded.unit.original == " Two."
    assert recorded.unit.start == len("One.")


@pytest.mark.parametrize("max_reviews", [None, 1000])
def test_what_a_verdict_takes_does_not_grow_with_the_sentences_that_wait(monkeypatch, max_reviews):
    """A given answer, or that of an upstream that does not stream, comes all at once."""
    looked = 0
    passed, may_be_kept = Unit.passed, Unit.may_be_kept

    def count(unit, read):
        nonlocal looked
        looked += 1
        return read.__get__(unit)

    monkeypatch.setattr(
        Unit,
        "passed",
        property(lambda unit: count(unit, passed), passed.__set__),
    )
    monkeypatch.setattr(Unit, "may_be_kept", property(lambda unit: count(unit, may_be_kept)))
    loop = loop_of(Policy(max_reviews=max_reviews), can_continue=False)
    settled(loop, loop.handle(TextArrived(0, "So it goes. " * 400)), lambda s: KEEP)
    assert loop.committed.startswith("So it goes. " * 390)
    assert looked < 400 * 100


# --- merge_below ----------------------------------------------------------------------------


def asked(text: str, policy: Policy) -> list[str]:
    loop = loop_of(policy)
    actions = settled(loop, loop.handle(TextArrived(0, text)), lambda s: KEEP)
    actions += settled(loop, loop.handle(BranchEnded(0, "stop")), lambda s: KEEP)
    assert loop.committed == text
    return [a.request.sentence for a in of(StartReview, actions)]


def test_short_sentences_are_reviewed_together_with_the_next_ones():
    policy = Policy(merge_below=20)
    assert asked("Yes. OK! It is a longer sentence. No.", policy) == [
        "Yes. OK! It is a longer sentence.",
        "No.",
    ]


def test_sentences_are_not_merged_across_code_nor_beyond_the_longest_sentence():
    policy = Policy(merge_below=100, max_sentence_chars=30)
    text = "Yes. No.\n```\nx = 1\n```\nWell. And so on."
    assert asked(text, policy) == ["Yes. No.", "Well. And so on."]
    assert asked("Here are ten words. Here are ten more. Ok.", policy) == [
        "Here are ten words.",
        "Here are ten more. Ok.",
    ]


def test_a_part_lets_go_of_what_is_held_for_merging():
    loop = loop_of(Policy(merge_below=100))
    loop.handle(TextArrived(0, "Yes. No."))
    [started] = of(StartReview, loop.handle(PartArrived(0, {"tool_calls": []})))
    assert started.request.sentence == "Yes. No."


def test_a_merged_sentence_that_seems_complete_is_asked_about_early():
    loop = loop_of(Policy(merge_below=20))
    assert of(StartReview, loop.handle(TextArrived(0, "Yes."))) == []
    [started] = of(StartReview, loop.handle(TextArrived(0, " It is a longer one.")))
    assert started.request.sentence == "Yes. It is a longer one."
    assert texts(loop.handle(ReviewDone(0, KEEP))) == []
    assert texts(loop.handle(TextArrived(0, " Then"))) == ["Yes. It is a longer one."]


PIECES = st.lists(
    st.sampled_from(
        ["Yes. ", "OK! ", "A longer one is here. ", "1. ", "\n```\nx = 1.\n```\n", "So"]
    )
)


@given(PIECES.map("".join), st.integers(1, 60), st.lists(st.integers(1, 7), min_size=1))
@settings(max_examples=300, deadline=None)
def test_what_is_merged_does_not_depend_on_chunking(text, least, sizes):
    def units(chunks: list[str]) -> list[str]:
        policy = Policy(merge_below=least, early_review=False)
        simulation = Simulation(policy, lambda prefix: list(chunks), lambda review: KEEP)
        simulation.run()
        return [d.unit.original for d in simulation.deliveries if d.unit]

    chunks, at = [], 0
    while at < len(text):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(text[at : at + size])
        at += size
    whole = units([text] if text else [])
    assert units(chunks) == whole
    assert "".join(whole) == text


# --- how many at once -----------------------------------------------------------------------


def test_reviews_run_to_the_bound_while_all_is_kept_and_fewer_where_all_is_rewritten():
    window = Window(Policy(review_ahead=16))
    for _ in range(50):
        window.judged(kept=True)
    assert window.reviews == 16
    seen = []
    for _ in range(60):
        window.judged(kept=False)
        seen.append(window.reviews)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 2
    for _ in range(200):
        window.judged(kept=True)
    assert window.reviews == 16


def test_without_adaptive_the_number_of_reviews_is_fixed():
    window = Window(Policy(review_ahead=5, adaptive=False))
    for _ in range(60):
        window.judged(kept=False)
    assert window.reviews == 5


def test_one_reply_never_has_more_reviews_in_flight_than_review_ahead():
    loop = loop_of(Policy(review_ahead=3))
    actions = loop.handle(TextArrived(0, "One. Two. Three. Four. Five. S"))
    assert len(of(StartReview, actions)) == 3


# --- what is lost ---------------------------------------------------------------------------


def test_reviews_in_vain_are_those_whose_verdict_was_not_committed():
    loop = loop_of()
    loop.handle(TextArrived(0, "One. Two. Three. F"))
    loop.handle(ReviewDone(1, KEEP))  # judged, then thrown away
    loop.handle(ReviewDone(0, Verdict("1.")))  # the third is dropped in flight
    actions = loop.handle(TextArrived(1, " Two."))
    actions += loop.handle(BranchEnded(1, "stop"))
    [started] = of(StartReview, actions)
    [finish] = of(Finish, loop.handle(ReviewDone(started.review, KEEP)))
    assert (finish.cost.reviews, finish.cost.reviews_in_vain) == (4, 2)


def test_nothing_is_in_vain_where_everything_is_kept():
    loop = loop_of()
    actions = settled(loop, loop.handle(TextArrived(0, "One. Two. T")), lambda s: KEEP)
    actions += settled(loop, loop.handle(BranchEnded(0, "stop")), lambda s: KEEP)
    assert of(Finish, actions)[0].cost.reviews_in_vain == 0
