"""Packed rows: each example has the loss it has alone, whatever attention computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training import recipe_parts
from training.recipe import segments
from training.recipe.batches import Collate
from training.recipe.config import load_recipe
from training.recipe.rows import IGNORE, Encoded, Encoder, profile_of, read
from training.recipe.schedule import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    recipe_parts.base(folder / "base")
    recipe_parts.rows(folder / "train.jsonl")
    recipe_parts.recipe(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[list[Encoded]]:
    recipe = load_recipe(str(folder / "recipe.yaml"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    encoder = Encoder(tokenizer, profile_of(recipe), recipe.model.keep_token)
    packed = pack([encoder.encode(one) for one in read([folder / "train.jsonl"])], 160)[:4]
    assert max(map(len, packed)) > 1
    return packed


def model(folder: Path, attention: str) -> Any:
    made: Any = AutoModelForCausalLM
    return made.from_pretrained(folder / "base", attn_implementation=attention).train()


def losses(model: Any, rows: list[list[Encoded]], flat: bool) -> torch.Tensor:
    """The loss of each answered token."""
    batch = Collate(rows, 0, flat)([{"row": number} for number in range(len(rows))])
    labels = batch.pop("labels")[:, 1:]
    # With a cache transformers does not look for packed rows: the trainer asks without it.
    logits = model(**batch, use_cache=False).logits[:, :-1]
    answered = labels != IGNORE
    return torch.nn.functional.cross_entropy(logits[answered], labels[answered], reduction="none")


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize(
    ("attention", "flat"), [("sdpa", False), ("sdpa", True), (segments.NAME, True)]
)
def test_an_example_has_the_loss_and_the_gradient_it_has_alone(
    folder: Path, rows: list[list[Encoded]], attention: str, flat: bool
) -> None:
    plain, packed = model(folder, "sdpa"), model(folder, attention)
    alone = torch.cat([losses(plain, [[example]], False) for row in rows for example in row])
    together = losses(packed, rows, flat)
    assert len(alone) == sum(len(one.ids) - one.start for row in rows for one in row)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    alone.mean().backward()
    together.mean().backward()
    torch.testing.assert_close(gradients(packed), gradients(plain), atol=1e-6, rtol=1e-4)


def test_segments_are_not_taken_for_a_model_that_looks_through_windows() -> None:
    from transformers import Gemma2Config, LlamaConfig, MistralConfig

    assert segments.fits(LlamaConfig())
    assert not segments.fits(Gemma2Config())
    windowed: Any = MistralConfig(sliding_window=64)
    assert not segments.fits(windowed)


def test_segments_refuse_a_window_that_they_would_not_keep_to() -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="use sdpa"):
        segments.attend(torch.nn.Module(), tensor, tensor, tensor, None, sliding_window=1)
