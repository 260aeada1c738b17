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

from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from training.recipe import keeping


class Diverged(Exception):
    """The loss is not a number any more; the last checkpoint is from before that."""


def finite(name: str, value: float, step: int) -> None:
    """Raise `Diverged` where it is not."""
    if not math.isfinite(value):
        raise Diverged(
            f"{name} is {value} at step {step}; the last checkpoint is from before it: lower the "
            "learning rate or look at the rows of that step"
        )


def numbered(first: int, count: int) -> Dataset:
    """TRL takes its own kind of dataset only: rows are told by number, and `Collate` has them."""
    return Dataset.from_dict({"row": list(range(first, first + count))})


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

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, *args: Any, **more: Any
    ) -> None:
        """Raise `Diverged` before a step that is not a number is logged or saved.

        `tr_loss` sums the steps since the last log, so a bad one in between is still in it.
        """
        if self.control.should_log or self.control.should_save:
            summed = self.accelerator.reduce(tr_loss.detach().clone(), "sum")
            finite("loss", float(summed), self.state.global_step)
            finite(
                "grad_norm", 0.0 if grad_norm is None else float(grad_norm), self.state.global_step
            )
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **more)

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
        if "eval_loss" in logs:
            finite("eval_loss", float(logs["eval_loss"]), state.global_step)
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
