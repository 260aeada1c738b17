"""The committed demo weights: small, whole, and what the configs say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.tokenizer import SPECIAL

MODELS = Path(__file__).resolve().parents[2] / "stream_aligner_proxy" / "demo" / "models"


@pytest.mark.parametrize("name", ["upstream", "aligner"])
def test_a_committed_model_is_small_and_says_how_it_was_made(name: str) -> None:
    folder = MODELS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    record = json.loads((folder / "training_config.json").read_text())
    assert {"config", "code", "torch"} <= set(record)
    assert isinstance(record["config"]["seed"], int)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] != config["pad_token_id"]
    tokens = json.loads((folder / "tokenizer.json").read_text())
    assert [one["content"] for one in tokens["added_tokens"]] == list(SPECIAL)


def test_both_models_share_one_tokenizer_and_the_aligner_names_its_profile() -> None:
    upstream, aligner = MODELS / "upstream", MODELS / "aligner"
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (upstream / file).read_text() == (aligner / file).read_text()
    record = json.loads((aligner / "training_config.json").read_text())
    assert record["prompt_profile"] == "compact"


def test_training_reads_only_the_train_split() -> None:
    """Every draw in training names its split, and only what measures names the held-out one."""
    root = Path(__file__).resolve().parents[2] / "training"
    measuring = {"evaluate.py", "demo_aligner.py", "ablations/__main__.py", "ablations/runs.py"}
    for file in (*root.glob("*.py"), *root.glob("ablations/*.py")):
        if str(file.relative_to(root)) not in measuring:
            assert '"test"' not in file.read_text(), file.name
