"""A tiny model, rows of the demo world and a recipe, for the tests of training.recipe."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from training.tokenizer import train_tokenizer

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def base(folder: Path) -> Path:
    """A random Llama of 30,000 parameters with the demo's tokenizer."""
    tokenizer: Any = train_tokenizer(1, vocab_size=400, count=200)
    torch.manual_seed(3)
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(file: Path, count: int = 120) -> Path:
    """Sums, every other one wrong; some rows whole answers."""
    rng = random.Random(5)
    lines = []
    for number in range(count):
        a, b = rng.randrange(50), rng.randrange(50)
        right, said = f"{a} + {b} = {a + b}.", f"{a} + {b} = {a + b + number % 2}."
        row: dict[str, Any] = {"question": f"What is {a} plus {b}?", "source": "sums"}
        row["group"] = f"g{number}"
        if number % 7:
            row |= {"prefix": "Let us see. " * (number % 5), "last": said, "correction": right}
            row["end"] = number % 11 == 0
        else:
            row |= {"answer": said, "correction": right}
        lines.append(json.dumps(row))
    file.write_text("\n".join(lines) + "\n")
    return file


def recipe(folder: Path, **more: Any) -> Path:
    """A recipe of 4 warm-up and some 14 correction steps, written to a file."""
    data: dict[str, Any] = {
        "name": "test",
        "model": {"base": str(folder / "base")},
        "precision": "fp32",
        "data": {"length": 160, "heldout": 0.1},
        "warmup": {"rows": 40, "lr": 0.001},
        "correction": {"epochs": 2, "lr": 0.002},
        "optim": {"batch": 4, "micro_batch": 2},
        "save": {"every": 4},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(data | more))
    return file


def curve(out: Path) -> dict[int, float]:
    """The loss of each step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
