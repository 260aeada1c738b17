"""DPO or ORPO on pairs, with TRL. The ids are ours: data never becomes a special token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from stream_aligner_proxy.core.prompts import PROFILES
from training.config import ConfigError
from training.engine import code_version
from training.preference.pairs import Pair
from training.recipe.rows import DataError, Encoder

Method = Literal["dpo", "orpo"]
_RECORD = "training_config.json"


@dataclass(frozen=True, slots=True)
class Tuning:
    """`beta`: how far the model may leave its start (DPO), or how much the odds weigh (ORPO).
    `likelihood`: the share of the plain loss on the chosen answer beside DPO's: without it the
    right answer may become less likely, too, as long as the wrong one does so faster."""

    method: Method = "dpo"
    beta: float = 0.1
    lr: float = 2e-5
    epochs: float = 1.0
    batch: int = 16
    length: int = 512
    likelihood: float = 0.2
    keep_token: bool = False
    seed: int = 0


class _Dpo(DPOTrainer):  # type: ignore[misc]
    """Takes rows of ids as they are."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class _Orpo(ORPOTrainer):  # type: ignore[misc]
    """The same: `tokenize_row` is where TRL would make ids of texts."""

    def tokenize_row(self, feature: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
        prompt = list(feature["prompt_ids"])
        row: dict[str, Any] = {
            "prompt_input_ids": prompt,
            "prompt_attention_mask": [1] * len(prompt),
        }
        for side in ("chosen", "rejected"):
            answer = list(feature[f"{side}_ids"])
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        return row


def tune(base: Path, pairs: Sequence[Pair], out: Path, tuning: Tuning) -> dict[str, float]:
    """Train from the checkpoint `base` into `out`, which must not be there yet; what the last
    steps showed. Raises `ConfigError` and `DataError`."""
    if out.exists():
        raise ConfigError(f"--out: {out} is there already")
    trained = _record(base)
    profile = PROFILES.get(str(trained.get("prompt_profile")))
    if profile is None:
        raise ConfigError(f"--aligner: {base.name} does not say its prompt profile")
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    rows = encoded(pairs, Encoder(tokenizer, profile, tuning.keep_token), tuning.length)
    set_seed(tuning.seed)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, local_files_only=True, dtype=torch.float32
    )
    cuda = torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": tuning.batch,
        "num_train_epochs": tuning.epochs,
        "learning_rate": tuning.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "beta": tuning.beta,
        "max_length": tuning.length,
        "seed": tuning.seed,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "use_cpu": not cuda,
        "bf16": cuda,
        "remove_unused_columns": False,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": False,
        "activation_checkpointing": cuda,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    trainer: Any
    if tuning.method == "dpo":
        losses = ["sigmoid", "sft"] if tuning.likelihood else ["sigmoid"]
        weights = [1.0, tuning.likelihood] if tuning.likelihood else [1.0]
        arguments = DPOConfig(loss_type=losses, loss_weights=weights, **common)
        trainer = _Dpo(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    else:
        trainer = _Orpo(
            model=model,
            args=ORPOConfig(**common),
            train_dataset=Dataset.from_list(
                [{"prompt": "", "chosen": "", "rejected": "", **row} for row in rows]
            ),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    history = trainer.state.log_history
    _save(
        trainer.model,
        tokenizer,
        out,
        trained
        | {
            "preference": {**asdict(tuning), "pairs": len(rows), "base": base.name},
            "code": code_version(),
        },
    )
    return _last(history)


def encoded(pairs: Sequence[Pair], encoder: Encoder, length: int) -> list[dict[str, list[int]]]:
    """Rows of ids; pairs that are too long are left out and counted on the screen."""
    rows = []
    for pair in pairs:
        chosen, rejected = map(encoder.encode, pair.samples())
        if max(len(chosen.ids), len(rejected.ids)) <= length:
            rows.append(
                {
                    "prompt_ids": chosen.ids[: chosen.start],
                    "chosen_ids": chosen.ids[chosen.start :],
                    "rejected_ids": rejected.ids[rejected.start :],
                }
            )
    if len(rows) < len(pairs):
        print(f"{len(pairs) - len(rows)} pairs over {length} tokens left out")
    if not rows:
        raise DataError("no pair is left to learn from")
    return rows


def _record(base: Path) -> dict[str, Any]:
    try:
        found = json.loads((base / _RECORD).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--aligner: {base.name} has no {_RECORD} that can be read") from error
    return found if isinstance(found, dict) else {}


def _save(model: Any, tokenizer: Any, out: Path, record: Mapping[str, Any]) -> None:
    """Weights as the base has them (bf16), beside, then under their name: never half there."""
    beside = out.with_name(out.name + ".part")
    model.to(torch.bfloat16).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    (beside / _RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n")
    if out.exists():  # TRL makes it, empty
        out.rmdir()
    beside.rename(out)


def _last(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the last step logged: loss, accuracy of preferring the chosen, and the margin."""
    names = ("loss", "rewards/accuracies", "rewards/margins")
    logged = [line for line in history if "loss" in line]
    return {name: float(logged[-1][name]) for name in names if logged and name in logged[-1]}
