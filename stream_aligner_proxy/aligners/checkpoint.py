"""Load an aligner from a directory: model, tokenizer, and which prompt profile it was trained for.

Everything that can be wrong with the directory or the settings is a `ConfigError` here, before the
first review."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream_aligner_proxy.aligners import lora
from stream_aligner_proxy.aligners.vocabulary import (
    DEFAULT_WINDOW,
    config_window,
    end_ids,
    training_config,
)
from stream_aligner_proxy.core.errors import ConfigError

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, ready to run. `ends`: ids that end its output. `window`: tokens."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    window: int
    profile: str | None = None


def load(
    path: Path, *, adapter: Path | None = None, device: str = "auto", dtype: str = "auto"
) -> Checkpoint:
    """Load the checkpoint in `path`, a local directory, onto a device. Blocks for seconds.

    A LoRA `adapter` is merged into the weights: it costs nothing afterwards. Its folder's own
    tokenizer and training configuration come before those of the model.
    """
    where = f"aligner.path: {path}"
    if not path.is_dir():
        raise ConfigError(f"{where}: is not a directory")
    if not (path / "config.json").is_file():
        raise ConfigError(f"{where}: has no config.json, so it is not a model's directory")
    place = _device(device)
    number = _dtype(dtype, place)
    trained = training_config(path)
    words = path
    if adapter is not None:
        lora.check(adapter)
        trained = {**trained, **training_config(adapter)}
        if (adapter / "tokenizer_config.json").is_file():
            words = adapter
    # A server's log is no place for it.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(words, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=number)
        if adapter is not None:
            model = lora.merged(model, adapter, len(tokenizer))
        model.eval().requires_grad_(False).to(place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: cannot be loaded: {type(error).__name__}: {error}") from error
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(f"{where}: the tokenizer has {len(tokenizer)} ids, the model {rows}")
    return Checkpoint(
        model,
        tokenizer,
        end_ids(
            getattr(model.generation_config, "eos_token_id", None),
            getattr(model.config, "eos_token_id", None),
            tokenizer.eos_token_id,
        ),
        config_window(model.config) or DEFAULT_WINDOW,
        trained.get("prompt_profile"),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"aligner.device: {name!r} is not a device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"aligner.device: {name!r}, but there is no CUDA device here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"aligner.dtype: {name!r}; known are auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
