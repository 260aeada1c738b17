"""LoRA adapters for an aligner: checked, loaded by PEFT, merged into the weights."""

import json
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError


def check(folder: Path) -> None:
    """Raise `ConfigError` where `folder` does not hold a LoRA adapter as PEFT writes it."""
    where = f"aligner.adapter: {folder}"
    if not folder.is_dir():
        raise ConfigError(f"{where}: is not a directory")
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ConfigError(f"{where}: has no adapter_config.json, so it is not a PEFT adapter")
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: adapter_config.json cannot be read") from error
    if kind != "LORA":
        raise ConfigError(f"{where}: is a {kind} adapter; only LORA can be merged")


def merged(model: Any, folder: Path, vocabulary: int) -> Any:
    """`model` with the adapter merged into it. Raises `ConfigError` where it does not fit.

    `vocabulary`: ids of the tokenizer. An adapter trained with new tokens brings their rows.
    """
    try:
        from peft import PeftModel  # noqa: PLC0415  (only who has an adapter needs it)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"aligner.adapter: needs the package {error.name!r}, which is not installed"
        ) from error
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    try:
        adapted: Any = PeftModel.from_pretrained(model, folder, local_files_only=True)
        return adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise ConfigError(
            f"aligner.adapter: {folder}: does not fit the model: {type(error).__name__}: {error}"
        ) from error
