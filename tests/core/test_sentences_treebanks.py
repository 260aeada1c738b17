"""Boundaries on real text, streamed in random chunks, stay as good as docs/splitter.md says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from bench.splitter import (
    TREEBANKS,
    UNSPACED,
    Paragraph,
    Score,
    Streamed,
    data_folder,
    golden,
    paragraphs,
    score,
)
from stream_aligner_proxy.core.sentences import split

FOLDER = data_folder()
needs_data = pytest.mark.skipif(
    FOLDER is None, reason="no treebanks: set STREAM_ALIGNER_DATA to the folder with ud-sentences"
)


@needs_data
def test_boundaries_agree_with_the_treebanks_whatever_the_chunks() -> None:
    folder = FOLDER or Path()
    inner: dict[str, float] = {}
    for language, name in TREEBANKS.items():
        path = folder / "ud-sentences" / f"{name}-ud-dev.jsonl.gz"
        texts = list(paragraphs(path, spaced=not name.startswith(UNSPACED)))
        whole = [paragraph.text for paragraph in texts]
        _, found, _ = score(lambda text: [s.text for s in split(text)], texts)
        assert score(Streamed(whole, 7), texts)[1] == found
        inner[language] = found.f1
    assert inner["en"] >= 87
    assert statistics.mean(inner.values()) >= 97


@needs_data
def test_most_golden_rules_hold() -> None:
    path = (FOLDER or Path()) / "golden-rules" / "english48.jsonl"
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert golden(lambda text: [s.text for s in split(text)], cases) >= 46


def test_the_score_counts_missed_and_invented_boundaries() -> None:
    texts = [Paragraph("A b. C d. E f.", ["A b.", "C d.", "E f."])]
    every, inner, _ = score(lambda _: ["A b. C d.", " E", " f."], texts)
    assert every == Score(right=2, found=3, gold=3)
    assert inner == Score(right=1, found=2, gold=2)
    assert every.f1 == pytest.approx(200 / 3)
