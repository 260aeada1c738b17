"""TRL's trainer with our order of rows, our checkpoints and our progress line."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from training.recipe import keeping
from training.recipe.rows import IGNORE, Encoded


class Diverged(Exception):
    """The loss is not a number any more; the last checkpoint is from before that."""


def numbered(first: int, count: int) -> Dataset:
    """TRL takes its own kind of dataset only: rows are told by number, and `Collate` has them."""
    return Dataset.from_dict({"row": list(range(first, first + count))})


@dataclass(frozen=True, slots=True)
class Collate:
    """Rows to one batch, without an attention mask: transformers derives it from positions that
    restart, for any attention but flash; there it must be one long row (`flat`)."""

    rows: Sequence[Sequence[Encoded]]
    pad: int
    flat: bool

    def __call__(self, numbers: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        rows = [_columns(self.rows[number["row"]]) for number in numbers]
        if self.flat:
            joined = {key: [x for row in rows for x in row[key]] for key in rows[0]}
            return {key: torch.tensor([values]) for key, values in joined.items()}
        longest = max(len(row["input_ids"]) for row in rows)
        # What pads a row is an example of its own, that nothing is learnt from.
        fill = {
            "input_ids": [self.pad] * longest,
            "labels": [IGNORE] * longest,
            "position_ids": list(range(longest)),
        }
        return {
            key: torch.tensor([row[key] + more[: longest - len(row[key])] for row in rows])
            for key, more in fill.items()
        }


def _columns(row: Sequence[Encoded]) -> dict[str, list[int]]:
    return {
        "input_ids": [token for one in row for token in one.ids],
        "labels": [label for one in row for label in one.labels],
        "position_ids": [place for one in row for place in range(len(one.ids))],
    }


class AlignerTrainer(SFTTrainer):  # type: ignore[misc]
    """`rate`: learning rate of a step, over the base rate. `record`: what a checkpoint is of."""

    def __init__(
        self,
        *args: Any,
        out: Path,
        rate: Callable[[int], float],
        record: dict[str, Any],
        **more: Any,
    ) -> None:
        self._out, self._rate, self._record = out, rate, record
        super().__init__(*args, **more)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        made: Any = getattr(self, "lr_scheduler", None)
        if made is None:
            made = LambdaLR(optimizer or self.optimizer, self._rate)
            self.lr_scheduler = made
        return made

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._out / keeping.WRITING)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """All processes write their parts, then the first one gives the whole its name."""
        step = self.state.global_step
        if self.is_world_process_zero():
            last = keeping.complete(self._out)
            if last:
                folder = self._out / "checkpoints" / keeping.name(last[-1])
                held = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                keeping.room_for(self._out, 1.05 * held)
            shutil.rmtree(self._out / keeping.WRITING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        # TRL's own would add a model card.
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            best = self.state.best_global_step
            record = {**self._record, "step": step, "best_step": best,
                      "best_heldout_loss": self.state.best_metric}  # fmt: skip
            keeping.publish(self._out, step, record)
            keeping.rotate(self._out, best)
        self.accelerator.wait_for_everyone()


@dataclass(slots=True)
class Meter:
    """`tokens` of each step; `flops` of a token; `peak` FLOP/s of all devices, None if unknown."""

    tokens: Sequence[int]
    flops: float
    peak: float | None


class Watch(TrainerCallback):
    """Progress line and `metrics.jsonl`; stops on a loss that is not a number."""

    def __init__(self, out: Path, meter: Meter, lead: bool) -> None:
        self._file, self._meter, self._lead = out / "metrics.jsonl", meter, lead
        self._bar: Any = None
        self._begun, self._from = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._from = state.global_step
        self._begun = time.monotonic()
        if not self._lead:
            return
        if self._file.is_file():
            lines = self._file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            self._file.write_text(
                "".join(line for line in whole if json.loads(line)["step"] <= self._from)
            )
        self._bar = tqdm(total=state.max_steps, initial=self._from, unit="step", mininterval=1)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        for key in ("loss", "grad_norm", "eval_loss"):
            if key in logs and not math.isfinite(float(logs[key])):
                raise Diverged(
                    f"{key} is {logs[key]} at step {state.global_step}; the last checkpoint is "
                    "from before it: lower the learning rate or look at the rows of that step"
                )
        if not self._lead or not {"loss", "eval_loss"} & logs.keys():
            return
        line = {"step": state.global_step} | {
            key: logs[key]
            for key in ("loss", "eval_loss", "grad_norm", "learning_rate", "mean_token_accuracy")
            if key in logs
        }
        if "loss" in logs:
            speed = sum(self._meter.tokens[self._from : state.global_step]) / max(
                time.monotonic() - self._begun, 1e-9
            )
            line["tokens_per_s"] = round(speed, 1)
            shown = {"loss": f"{logs['loss']:.4f}", "tok/s": f"{speed:.0f}"}
            if self._meter.peak:
                line["mfu"] = round(speed * self._meter.flops / self._meter.peak, 4)
                shown["mfu"] = f"{line['mfu']:.1%}"
            self._bar.set_postfix(shown)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
