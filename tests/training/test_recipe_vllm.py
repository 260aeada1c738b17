"""The folder that a run ends with is what vLLM serves: it loads there and writes the same ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stream_aligner_proxy.core.prompts import PROFILES
from tests.training import recipe_parts
from training.demo_aligner import UPSTREAM, rows, write
from training.recipe.rows import Encoder, read

pytest.importorskip("trl", reason="needs the extra `recipe` (TRL)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the demo models are not built"),
]

VENV = recipe_parts.ROOT / ".venv-vllm"
TOKENS = 32


@pytest.fixture(scope="module")
def vllm() -> Path:
    """The interpreter of vLLM's own environment."""
    if not (VENV / ".installed").is_file():
        reason = f"needs vLLM's environment, {VENV.name}: make vllm"
        if os.environ.get("VLLM_REQUIRED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return VENV / "bin" / "python"


def called(*command: str | Path) -> None:
    done = subprocess.run(
        list(map(str, command)),
        env=recipe_parts.ENV,
        cwd=recipe_parts.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def prompts(folder: Path, file: Path) -> list[list[int]]:
    """The rows' reviews as this folder's tokenizer and the recipe put them."""
    encoder = Encoder(AutoTokenizer.from_pretrained(folder), PROFILES["compact"], True)
    encoded = [encoder.encode(sample) for sample in read([file])]
    return [one.ids[: one.start] for one in encoded]


def greedy(folder: Path, asked: list[list[int]]) -> list[list[int]]:
    """What transformers writes, up to the token that the folder says ends an answer."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for ids in asked:
        given = torch.tensor([ids])
        made = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=TOKENS,
        )
        answers.append(made[0, len(ids) :].tolist())
    return answers


def test_vllm_writes_what_transformers_writes_with_the_trained_folder(
    vllm: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write(data / "train.jsonl", rows("train", 1, 100))
    write(data / "heldout.jsonl", rows("test", 1, 12))
    settings = [f"model.base={UPSTREAM}", "warmup.rows=20"]
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = [sys.executable, "-m", "training.recipe", "train", "--config", "tiny-cpu"]
    called(*recipe, "--data", data, "--out", out, *sets)

    asked = prompts(out / "model", data / "heldout.jsonl")
    expected = greedy(out / "model", asked)
    # It is the trained weights that are compared, and where answers end.
    assert expected != greedy(UPSTREAM, asked)
    assert any(len(answer) < TOKENS for answer in expected)

    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    greedily: list[str | Path] = [vllm, "-m", "tests.training.vllm_greedy", str(out / "model")]
    called(*greedily, tmp_path / "prompts.json", str(TOKENS), tmp_path / "ids.json")
    assert json.loads((tmp_path / "ids.json").read_text()) == expected
