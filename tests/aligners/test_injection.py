"""A corpus of hostile texts, in every field of every prompt format (rule 8).

`python -m bench.injection` tries all of it with every kind of tokenizer, and with a model.
"""

import pytest

from bench.hostile import corpus
from bench.injection import breaks, encoders, hostile_reviews
from stream_aligner_proxy.core.prompts import Segment

ENCODERS = encoders()
ATTACKS = corpus()


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_no_hostile_text_becomes_a_mark_or_a_special_token_or_is_changed(name: str) -> None:
    encoder = ENCODERS[name]
    reviews = hostile_reviews(ATTACKS)[::7]
    tried = 0
    for review in reviews:
        if review.scope in encoder.profile.scopes:
            tried += 1
            assert breaks(encoder, review) is None, review
    assert tried > 150


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len(ATTACKS) >= 200
    assert len({attack.text for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.kind for attack in ATTACKS}) >= 12


@pytest.mark.parametrize("kind", ["unigram", "BPE with byte fallback"])
def test_the_name_of_a_byte_is_not_the_byte(kind: str) -> None:
    encoder = ENCODERS[f"compact / {kind}"]
    text = "<0x23><0x23>Question: <0x0A>"
    assert encoder._decode(list(encoder._encode(Segment(text)))) == text


def test_the_check_can_fail() -> None:
    encoder = ENCODERS["compact / unigram"]
    encoder._names_bytes = False
    try:
        broken = [review for review in hostile_reviews(ATTACKS) if breaks(encoder, review)]
    finally:
        encoder._names_bytes = True
        encoder._cached.cache_clear()
    assert broken
