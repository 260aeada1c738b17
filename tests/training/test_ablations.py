"""The comparison of runs: its table of variants, its rows, its reviewer and its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any, cast

import pytest

from stream_aligner_proxy.core.records import Review, Verdict
from training.ablations.plot import draw
from training.ablations.rounds import FirstOnly
from training.ablations.runs import own_rows
from training.ablations.variants import BASE, SIZES, VARIANTS
from training.demo_aligner import UPSTREAM
from training.engine import build_model
from training.loops import Episode, ModelReviewer, Seen
from training.tokenizer import train_tokenizer
from training.world.problems import problems


def test_a_variant_starts_from_an_earlier_one() -> None:
    """They are run in order, each in a folder of its name."""
    seen: list[str] = []
    for one in VARIANTS:
        assert one.name not in seen
        assert one.start is None or one.start in seen, one.name
        seen.append(one.name)
    assert seen[0] == BASE.name


def test_the_sizes_are_what_they_say() -> None:
    tokenizer = train_tokenizer(1, 1024, count=300)
    for one in SIZES:
        assert one.shape is not None
        model = build_model(one.shape, tokenizer, 1)
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        # The merges learnt from so little text are fewer than 1,024.
        assert float(one.says.split(" ")[0]) == pytest.approx(millions, rel=0.08)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the demo models are not built")
def test_the_upstreams_own_sentences_are_rows_right_and_wrong() -> None:
    found = list(own_rows(1, 12))
    assert len(found) == 12
    wrong = [row for row in found if row["last"] != row["correction"]]
    assert 0 < len(wrong) < 12
    assert all(row["source"] == "own" and row["group"] for row in found)


def test_no_more_sentences_are_corrected_than_may_be() -> None:
    def inner(asked: Any) -> list[Verdict]:
        return [Verdict("better" if review.sentence == "bad" else None) for _, review in asked]

    (task,) = problems(1, 1, "train")
    fresh = Episode((), task)
    once = Episode((), task, seen=[Seen("", "bad", Verdict("better"))])
    asked = [
        (episode, Review((), "", sentence))
        for episode in (fresh, once)
        for sentence in ("good", "bad", "bad", "bad")
    ]
    reviewer = FirstOnly(cast(ModelReviewer, inner), 2)
    changed = [not verdict.kept for verdict in reviewer(asked)]
    assert changed == [False, True, True, False, False, True, False, False]
    assert FirstOnly(cast(ModelReviewer, inner), None)(asked) == inner(asked)


def test_every_run_is_in_the_picture() -> None:
    shares = {"keep_recall": 0.9, "fixed": 0.5, "accuracy": 0.7, "problems": 100}
    rows = [{"variant": one.name, **shares, "fixed_interval": [0.4, 0.6]} for one in VARIANTS]
    gains = [{"corrected": "1", "accuracy": 0.6, "n": 100}]
    picture = draw({"variants": rows, "by_corrections": {"base": gains}})
    ET.fromstring(picture)
    assert "nan" not in picture
    for one in VARIANTS:
        assert f">{one.name}</text>" in picture
    assert "1 corrected" in picture
