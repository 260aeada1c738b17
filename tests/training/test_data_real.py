"""The real sets of `../shared/data`, where they are: a sample of each is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.training.making import made
from training.data.config import BuildConfig
from training.data.pipeline import build
from training.data.writing import dump

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = (
    "mr-ben", "prmbench", "gsm8k", "verify-then-generate", "big-bench-mistake", "verify-cot",
    "factcheck-gpt", "qa-feedback", "truthfulqa", "hh-rlhf", "paradetox", "xstest",
)  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", SETS)
def test_a_real_set_is_read_with_hardly_a_bad_record(name: str, tmp_path: Path) -> None:
    source = {"name": name, "path": str(SHARED / name), "limit": 150}
    data = build(BuildConfig(sources=[source]), tmp_path / "out", say=lambda _: None)
    read = data["read"][name]
    assert read["rows"] > 100
    assert sum(read["rejected"].values()) <= 1
    kinds = Counter(one.kept for one in made(tmp_path / "out"))
    if name not in ("verify-cot", "xstest"):
        assert kinds[False] > 0
    text = "".join(dump(one) for one in made(tmp_path / "out"))
    assert "<<" not in text or name != "gsm8k"
    assert "Step 2:" not in text or name != "mr-ben"
