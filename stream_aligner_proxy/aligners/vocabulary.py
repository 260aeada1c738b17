"""What a checkpoint's folder says without its weights: tokenizer, end ids, window, prompt profile.

Rule: nothing here needs torch, so that an aligner served elsewhere needs no torch here. A folder
without weights will do, even one that holds the tokenizer's files alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.prompts import PROFILES, PromptProfile

TRAINING_CONFIG = "training_config.json"
DEFAULT_WINDOW = 2048
# A tokenizer without a limit of its own says something astronomic.
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A loaded tokenizer. `ends`: ids that end an output. `window`: tokens, None where the folder
    does not say. `profile`: the one it was trained for, None likewise."""

    tokenizer: Any
    ends: frozenset[int]
    window: int | None
    profile: str | None


class Trained(Protocol):
    """What knows its prompt profile, or that it does not."""

    @property
    def profile(self) -> str | None: ...


def load_vocabulary(path: Path) -> Vocabulary:
    """Read the tokenizer and what else there is. Blocks for a second. Raises `ConfigError`."""
    where = f"aligner.path: {path}"
    if not path.is_dir():
        raise ConfigError(f"{where}: is not a directory")
    trained = training_config(path)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        config: Any = None
        if (path / "config.json").is_file():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ConfigError(
            f"{where}: its tokenizer cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    window = config_window(config) if config is not None else None
    limit = tokenizer.model_max_length
    if window is None and isinstance(limit, int) and 0 < limit < _NO_LIMIT:
        window = limit
    generation = read_object(path / "generation_config.json")
    ends = end_ids(
        generation.get("eos_token_id"),
        getattr(config, "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    return Vocabulary(tokenizer, ends, window, trained.get("prompt_profile"))


def end_ids(*found: object) -> frozenset[int]:
    """Every id that the files call an end of sequence: each names none, one or a list."""
    ids: set[int] = set()
    for some in found:
        ids.update(some if isinstance(some, list | tuple) else () if some is None else (some,))
    return frozenset(ids)


def config_window(config: Any) -> int | None:
    """The longest sequence a model was made for, in tokens, where its configuration says."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def choose_profile(setting: str | None, trained: Trained) -> PromptProfile:
    """The profile of the setting, else of the checkpoint. Raises `ConfigError` for neither."""
    name = setting or trained.profile
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


def training_config(path: Path) -> dict[str, Any]:
    """What the training module wrote down beside the checkpoint; empty where it did not."""
    return read_object(path / TRAINING_CONFIG)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none. Raises `ConfigError`."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"aligner.path: {file}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"aligner.path: {file}: is not a JSON object")
    return content
