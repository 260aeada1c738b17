"""One run: everything that can be wrong is said before the model is loaded; then TRL trains."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed
from transformers.integrations import deepspeed as settings
from trl import SFTConfig

from training.config import ConfigError
from training.engine import code_version
from training.recipe import estimate, keeping, launch, model
from training.recipe.batches import Collate
from training.recipe.config import Recipe, accumulation
from training.recipe.rows import (
    DataError,
    Encoded,
    Encoder,
    Sample,
    files,
    fingerprint,
    hold_out,
    profile_of,
    read,
    unchanged,
)
from training.recipe.schedule import Schedule, pack, rate, schedule
from training.recipe.trainer import AlignerTrainer, Meter, Watch, numbered

ZERO = Path(__file__).parent.parent / "configs" / "zero"


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train, or go on where a run in `out` stopped; returns the model's folder.

    Raises `ConfigError`, `DataError`, `keeping.NoSpace`, `trainer.Diverged`.
    """
    launch.needs(recipe)
    machine = launch.join(recipe)
    passes = accumulation(recipe, machine.devices)
    shape = estimate.size(recipe)
    estimate.must_fit(recipe, shape, machine.devices, machine.device, machine.host)
    out.mkdir(parents=True, exist_ok=True)
    learnt = shape.parameters if recipe.method == "full" else shape.parameters / 50
    # Weights, optimizer and master copy of the first checkpoint; later ones are measured.
    keeping.room_for(out, 2.0 * shape.parameters + 12.0 * learnt)
    tokenizer = model.load_tokenizer(recipe)
    plan, unseen, record = prepare(recipe, tokenizer, data)
    done = _resume(out, record)
    if done and done >= plan.steps and (out / "model").is_dir():
        print(f"{out}: this run is finished")
        return out / "model"
    set_seed(recipe.seed)
    # DeepSpeed shares out the weights while they are loaded, so its settings come first.
    args = _arguments(
        recipe, out, steps=plan.steps, passes=passes, heldout=bool(unseen), cuda=machine.cuda
    )
    attention = model.attention(recipe, machine.cuda)
    flat = attention in model.FLAT
    trainer = AlignerTrainer(
        model=model.load_model(recipe, tokenizer, attention),
        args=args,
        data_collator=Collate([*plan.rows, *unseen], tokenizer.pad_token_id, flat),
        train_dataset=numbered(0, len(plan.rows)),
        eval_dataset=numbered(len(plan.rows), len(unseen)) if unseen else None,
        processing_class=tokenizer,
        peft_config=model.lora(recipe),
        out=out,
        rate=rate(recipe, plan.ends),
        record=record,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(out, _meter(recipe, shape, plan, machine), machine.lead))
    last = out / "checkpoints" / keeping.name(done) if done else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if machine.lead:
        # One process reads a whole model now: at stage 3 it would wait for the others' shares.
        settings.unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        step = model.finish(recipe, out, trainer.state.best_global_step)
        print(f"saved {out / 'model'} (step {step})")
    trainer.accelerator.wait_for_everyone()
    return out / "model"


def _meter(recipe: Recipe, shape: estimate.Size, plan: Schedule, machine: launch.Machine) -> Meter:
    batch = recipe.optim.batch
    lengths = [[len(one.ids) for one in row] for row in plan.rows]
    totals = [sum(row) for row in lengths]
    tokens = [sum(totals[at : at + batch]) for at in range(0, len(totals), batch)]
    # A token attends to its own example only, however long the row is.
    seen = sum(n * n for row in lengths for n in row) / max(1, sum(totals))
    peak = recipe.report.peak_tflops
    if peak is None and machine.cuda:
        peak = estimate.peak_of(torch.cuda.get_device_name())
    return Meter(
        tokens,
        estimate.step_flops(shape, 1, seen),
        peak * 1e12 * machine.devices if peak else None,
    )


def prepare(
    recipe: Recipe, tokenizer: Any, folder: Path
) -> tuple[Schedule, list[list[Encoded]], dict[str, Any]]:
    """The steps of a run, the held-out rows, and what its checkpoints will say about it."""
    encoder = Encoder(tokenizer, profile_of(recipe), recipe.model.keep_token)
    learn, keep = files(folder)
    samples = list(read(learn))
    held = list(read(keep))
    if not held and recipe.data.heldout:
        samples, held = hold_out(samples, recipe.data.heldout)
    if not samples:
        raise DataError(f"{folder}: has no rows to train on")
    length, rule = recipe.data.length, recipe.data.too_long
    taken = _some(samples, recipe.correction.rows or len(samples), f"{recipe.seed}/correction")
    warm = unchanged(_some(samples, len(samples), f"{recipe.seed}/warm-up"), recipe.warmup.rows)
    correct = encoder.all(taken, length, rule)
    plan = schedule(recipe, encoder.all(warm, length, rule), correct)
    unseen = pack(encoder.all(held, length, rule), length)
    if plan.steps == 0:
        raise DataError(f"{folder}: no row fits in data.length: {length} tokens")
    record = {
        "prompt_profile": recipe.model.profile,
        "recipe": asdict(recipe),
        "data": {
            "fingerprint": fingerprint(samples),
            "rows": len(samples),
            "kept": sum(one.kept for one in samples),
            "heldout": len(held),
            "warmup": len(warm),
        },
        "steps": {"warmup": plan.ends[0], "all": plan.steps},
        "code": code_version(),
        "versions": {
            name: version(name)
            for name in ("torch", "transformers", "trl", "accelerate", "deepspeed", "peft")
            if launch.have(name)
        }
        | {"python": platform.python_version()},
    }
    return plan, unseen, record


def _some(samples: Sequence[Sample], count: int, seed: str) -> list[Sample]:
    """So many of them, whatever order they lie in: files tend to have one source after another."""
    return random.Random(seed).sample(samples, min(count, len(samples)))


def _resume(out: Path, record: dict[str, Any]) -> int:
    """The step to go on from, 0 for a new run. Raises `ConfigError` for another run's folder."""
    steps = keeping.complete(out)
    if not steps:
        return 0
    found = keeping.load(out / "checkpoints" / keeping.name(steps[-1]) / keeping.RECORD)
    for part in ("recipe", "data", "steps"):
        if found.get(part) != record[part]:
            raise ConfigError(
                f"--out: {out} holds a run with another {part}; choose another folder"
            )
    print(f"going on from step {steps[-1]}")
    return steps[-1]


def _arguments(
    recipe: Recipe, out: Path, *, steps: int, passes: int, heldout: bool, cuda: bool
) -> Any:
    tensorboard = launch.have("tensorboard")
    if not tensorboard:
        print("no TensorBoard files: the package 'tensorboard' is not installed")
    if recipe.report.wandb:
        os.environ["WANDB_PROJECT"] = recipe.report.wandb
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    zero = f"zero{recipe.zero.stage}{'-offload' if recipe.zero.offload else ''}.json"
    reports = ["tensorboard"] * tensorboard + ["wandb"] * bool(recipe.report.wandb)
    return SFTConfig(
        output_dir=str(out),
        deepspeed=str(ZERO / zero) if recipe.zero.stage else None,
        max_steps=steps,
        per_device_train_batch_size=recipe.optim.micro_batch,
        per_device_eval_batch_size=recipe.optim.micro_batch,
        gradient_accumulation_steps=passes,
        learning_rate=recipe.correction.lr,
        weight_decay=recipe.optim.weight_decay,
        adam_beta1=recipe.optim.beta1,
        adam_beta2=recipe.optim.beta2,
        max_grad_norm=recipe.optim.clip,
        bf16=recipe.precision == "bf16",
        use_cpu=not cuda,
        ddp_backend="gloo" if not cuda and "WORLD_SIZE" in os.environ else None,
        activation_checkpointing=recipe.activation_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=recipe.model.liger,
        seed=recipe.seed,
        save_strategy="steps",
        save_steps=recipe.save.every,
        eval_strategy="steps" if heldout else "no",
        eval_steps=recipe.save.every if heldout else None,
        metric_for_best_model="eval_loss" if heldout else None,
        prediction_loss_only=True,
        logging_steps=recipe.report.every,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        report_to=reports or "none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        packing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
