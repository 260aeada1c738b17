"""`make train` in small: rows of the demo world, the recipe, numbers, a checkpoint to serve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream_aligner_proxy.aligners.checkpoint import load
from tests.training import recipe_parts
from training.demo_aligner import MIX, UPSTREAM, rows
from training.recipe.rows import read

needs_models = pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the demo models are not built")


def test_rows_of_the_world_can_be_read_and_half_of_them_are_right(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows("train", 1, 300)))
    samples = list(read([file]))
    assert len(samples) == 300
    assert 0.4 < sum(one.kept for one in samples) / 300 < 0.8
    assert MIX.whole == 0
    assert all(one.review.scope == "sentence" for one in samples)


def test_no_question_is_on_both_sides() -> None:
    asked = [{row["group"] for row in rows(split, 1, 300)} for split in ("train", "test")]
    assert not asked[0] & asked[1]


@needs_models
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_trains_measures_and_leaves_what_serve_loads(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra `recipe` (TRL)")
    small = ["--rows", "40", "--heldout", "8", "--problems", "2", "--set", "warmup.rows=8"]
    done = subprocess.run(
        [sys.executable, "-m", "training.demo_aligner", "--out", str(tmp_path), *small],
        env=recipe_parts.ENV,
        cwd=recipe_parts.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = tmp_path / "run" / "model"
    assert f"stream-aligner serve --aligner {model}" in done.stdout
    assert load(model, device="cpu").profile == "compact"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"]["rows"] == 8
    assert [row["mode"] for row in report["loop"]] == ["off", "stream"]
