"""The model and tokenizer that a recipe starts from, and the folder that it ends with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from training.recipe import keeping, segments
from training.recipe.config import Recipe
from training.recipe.launch import have
from training.recipe.rows import missing_tokens, profile_of

FLASH = "flash_attention_2"
# These take a batch as one long row, with the bounds of its examples.
FLAT = (FLASH, "flash_attention_3", segments.NAME)


def load_tokenizer(recipe: Recipe) -> Any:
    """The base's tokenizer, with the profile's control tokens where the recipe adds them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(recipe.model.base)
    missing = missing_tokens(tokenizer, profile_of(recipe))
    if missing and recipe.model.add_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def attention(recipe: Recipe, cuda: bool) -> str:
    """The name of an attention that transformers knows, or of our own."""
    if recipe.model.attention != "auto":
        return recipe.model.attention
    if cuda:
        return FLASH if have("flash_attn") else "sdpa"
    config: Any = AutoConfig.from_pretrained(recipe.model.base)
    return segments.NAME if segments.fits(config) else "sdpa"


def load_model(recipe: Recipe, tokenizer: Any, attention: str) -> Any:
    """The base, with a row for every token. DeepSpeed's settings must be known by now: at stage 3
    it shares out the weights while they are read."""
    # Without DeepSpeed the weights that Adam changes are in single precision.
    narrow = recipe.precision == "bf16" and (recipe.zero.stage > 0 or recipe.method != "full")
    more: dict[str, Any] = {}
    if recipe.method == "qlora":
        from transformers import BitsAndBytesConfig  # noqa: PLC0415

        four_bits: Any = BitsAndBytesConfig
        more["quantization_config"] = four_bits(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model: Any = AutoModelForCausalLM.from_pretrained(
        recipe.model.base,
        dtype=torch.bfloat16 if narrow else torch.float32,
        attn_implementation=attention,
        **more,
    )
    _make_room(model, tokenizer)
    return model


def _make_room(model: Any, tokenizer: Any) -> None:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def lora(recipe: Recipe) -> Any:
    """PEFT's configuration, None for full fine-tuning."""
    if recipe.method == "full":
        return None
    from peft import LoraConfig  # noqa: PLC0415

    targets: Any = recipe.lora.targets
    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        # New tokens are learnt as a whole; a low rank of their embedding says nothing.
        modules_to_save=["embed_tokens", "lm_head"] if recipe.model.add_tokens else None,
        task_type="CAUSAL_LM",
    )


def finish(recipe: Recipe, out: Path, best: int | None) -> int:
    """Make OUT/model from the last or the best checkpoint; returns its step. One process does."""
    step = keeping.complete(out)[-1]
    if recipe.save.final == "best" and best in keeping.complete(out):
        step = best
    target = out / "model"
    keeping.export(out / "checkpoints" / keeping.name(step), target)
    if recipe.method != "full" and recipe.lora.merge:
        _merge(recipe, target)
    return step


def _merge(recipe: Recipe, target: Path) -> None:
    """Put a whole model in the place of the adapter in `target`."""
    from peft import PeftModel  # noqa: PLC0415

    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    base: Any = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32)
    _make_room(base, tokenizer)
    merged: Any = PeftModel.from_pretrained(base, target).merge_and_unload(safe_merge=True)
    temp = target.with_name(".model-merged")
    shutil.rmtree(temp, ignore_errors=True)
    if recipe.precision == "bf16":
        merged = merged.to(torch.bfloat16)
    merged.save_pretrained(temp)
    tokenizer.save_pretrained(temp)
    shutil.copy2(target / keeping.RECORD, temp / keeping.RECORD)
    keeping.replace(temp, target)
