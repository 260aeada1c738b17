"""What two aligners make of one sentence."""

import pytest

from stream_aligner_proxy.core.comparing import MAX_CHARS, compare, judged
from stream_aligner_proxy.core.records import Verdict

KEEP, FAILED = Verdict(), None
SENTENCE = "Anna has 3 apples."


def of(current: Verdict | None, candidate: Verdict | None, sentence: str = SENTENCE):
    return compare(judged(sentence, current, 0.1), judged(sentence, candidate, 0.2))


@pytest.mark.parametrize(
    ("current", "candidate", "agreement", "similarity"),
    [
        (KEEP, KEEP, "both_keep", None),
        (KEEP, Verdict(SENTENCE), "both_keep", None),
        (KEEP, Verdict(f" {SENTENCE}\n"), "both_keep", None),
        (Verdict("Two."), Verdict(" Two."), "same_text", 1.0),
        (Verdict("Two."), Verdict("Ten."), "different_text", 0.5),
        (Verdict(""), Verdict(""), "same_text", 1.0),
        (Verdict(""), Verdict("Ten."), "different_text", 0.0),
        (Verdict("Anna has 4 apples."), KEEP, "only_current", 1 - 1 / 18),
        (KEEP, Verdict(""), "only_candidate", 0.0),
        (FAILED, KEEP, "current_failed", None),
        (Verdict("Two."), FAILED, "candidate_failed", None),
        (FAILED, FAILED, "both_failed", None),
    ],
)
def test_two_verdicts_agree_or_differ_in_one_of_eight_ways(
    current, candidate, agreement, similarity
):
    compared = of(current, candidate)
    assert compared.agreement == agreement
    assert compared.similarity == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("current", "candidate", "ends"),
    [
        (KEEP, KEEP, None),
        (Verdict(end=True), KEEP, "current"),
        (KEEP, Verdict("Two.", end=True), "candidate"),
        (Verdict(end=True), Verdict(end=True), "both"),
        (FAILED, Verdict(end=True), "candidate"),
    ],
)
def test_who_ends_the_reply_is_told_apart_from_what_becomes_of_the_sentence(
    current, candidate, ends
):
    assert of(current, candidate).ends == ends


def test_texts_too_long_for_an_edit_distance_have_none():
    long = "x" * (MAX_CHARS + 1)
    compared = of(Verdict("y"), KEEP, long)
    assert (compared.agreement, compared.similarity) == ("only_current", None)
