"""Load an aligner from a directory: model, tokenizer, and which prompt profile it was trained for.

Everything that can be wrong with the directory or the settings is a `ConfigError` here, before the
first review."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream_aligner_proxy.aligners import lora
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.prompts import PROFILES, PromptProfile

TRAINING_CONFIG = "training_config.json"
DEFAULT_WINDOW = 2048

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
    trained = _training_config(path)
    words = path
    if adapter is not None:
        lora.check(adapter)
        trained = {**trained, **_training_config(adapter)}
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
        end_ids(model, tokenizer),
        window_of(model),
        trained.get("prompt_profile"),
    )


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that the model's files call an end of sequence."""
    found: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else () if ids is None else (ids,))
    return frozenset(found)


def window_of(model: Any) -> int:
    """The longest sequence the model was made for, in tokens."""
    config = model.config.get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else DEFAULT_WINDOW


def choose_profile(setting: str | None, checkpoint: Checkpoint) -> PromptProfile:
    """The profile of the setting, else of the checkpoint. Raises `ConfigError` for neither."""
    name = setting or checkpoint.profile
    if not name:
        raise ConfigError(
            "aligner.profile: not set, and the checkpoint has no prompt_profile in "
            f"{TRAINING_CONFIG}; known are {', '.join(PROFILES)}"
        )
    if name not in PROFILES:
        raise ConfigError(
            f"aligner.profile: unknown profile {name!r}; known are {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def _training_config(path: Path) -> dict[str, Any]:
    file = path / TRAINING_CONFIG
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"aligner.path: {file}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"aligner.path: {file}: is not a JSON object")
    return content


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
