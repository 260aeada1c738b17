"""One run: everything that can be wrong is said before the model is loaded; then TRL trains."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import SFTConfig

from training.config import ConfigError
from training.engine import code_version
from training.recipe import estimate, keeping
from training.recipe.config import Recipe, accumulation
from training.recipe.rows import (
    DataError,
    Encoded,
    Encoder,
    files,
    fingerprint,
    hold_out,
    missing_tokens,
    profile_of,
    read,
    unchanged,
)
from training.recipe.schedule import Schedule, pack, rate, schedule
from training.recipe.trainer import AlignerTrainer, Collate, Meter, Watch, numbered

ZERO = Path(__file__).parent.parent / "configs" / "zero"


def have(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def needs(recipe: Recipe) -> None:
    """Raise `ConfigError` for a package or device that the recipe asks for and is not here."""
    wanted = [("zero.stage", "deepspeed", recipe.zero.stage > 0)]
    wanted += [("method", "peft", recipe.method != "full")]
    wanted += [("method", "bitsandbytes", recipe.method == "qlora")]
    wanted += [("model.liger", "liger_kernel", recipe.model.liger)]
    wanted += [("report.wandb", "wandb", recipe.report.wandb is not None)]
    wanted += [("model.attention", "flash_attn", recipe.model.attention == "flash_attention_2")]
    for key, package, asked in wanted:
        if asked and not have(package):
            raise ConfigError(f"{key}: needs the package {package!r}, which is not installed")
    if recipe.method == "qlora" and not torch.cuda.is_available():
        raise ConfigError("method: qlora needs a CUDA device, and there is none here")


def train(recipe: Recipe, data: Path, out: Path) -> Path:
    """Train, or go on where a run in `out` stopped; returns the model's folder.

    Raises `ConfigError`, `DataError`, `keeping.NoSpace`, `trainer.Diverged`.
    """
    needs(recipe)
    devices, lead = _processes(recipe)
    passes = accumulation(recipe, devices)
    cuda = torch.cuda.is_available()
    shape = estimate.size(recipe)
    device, host = _memory(cuda)
    estimate.must_fit(recipe, shape, devices, device, host)
    out.mkdir(parents=True, exist_ok=True)
    learnt = shape.parameters if recipe.method == "full" else shape.parameters / 50
    # Weights, optimizer and master copy of the first checkpoint; later ones are measured.
    keeping.room_for(out, 2.0 * shape.parameters + 12.0 * learnt)
    tokenizer: Any = AutoTokenizer.from_pretrained(recipe.model.base)
    added = _add_tokens(recipe, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    plan, unseen, record = prepare(recipe, tokenizer, data)
    flash = _attention(recipe, cuda)
    steps_done = _resume(out, record)
    if steps_done and steps_done >= plan.steps and (out / "model").is_dir():
        print(f"{out}: this run is finished")
        return out / "model"
    set_seed(recipe.seed)
    # DeepSpeed shares out the weights while they are loaded, so its settings come first.
    args = _arguments(recipe, out, steps=plan.steps, passes=passes, heldout=bool(unseen))
    model = _model(recipe, tokenizer, added, flash)
    trainer = AlignerTrainer(
        model=model,
        args=args,
        data_collator=Collate(
            [*plan.rows, *unseen], tokenizer.pad_token_id, flash == "flash_attention_2"
        ),
        train_dataset=numbered(0, len(plan.rows)),
        eval_dataset=numbered(len(plan.rows), len(unseen)) if unseen else None,
        processing_class=tokenizer,
        peft_config=_lora(recipe),
        out=out,
        rate=rate(recipe, plan.ends),
        record=record,
    )
    batch = recipe.optim.batch
    tokens = [
        sum(len(one.ids) for row in plan.rows[at : at + batch] for one in row)
        for at in range(0, len(plan.rows), batch)
    ]
    peak = recipe.report.peak_tflops
    if peak is None and cuda:
        peak = estimate.peak_of(torch.cuda.get_device_name())
    flops = estimate.step_flops(shape, 1, recipe.data.length)
    meter = Meter(tokens, flops, peak * 1e12 * devices if peak else None)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch(out, meter, lead))
    last = out / "checkpoints" / keeping.name(steps_done) if steps_done else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if lead:
        _finish(recipe, out, trainer.state.best_global_step)
    trainer.accelerator.wait_for_everyone()
    return out / "model"


def _processes(recipe: Recipe) -> tuple[int, bool]:
    """Processes of the run, and whether this one speaks for them."""
    if recipe.zero.stage and "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    if recipe.zero.stage and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # noqa: PLC0415

        deepspeed.init_distributed(dist_backend="gloo")
    return int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"


def _memory(cuda: bool) -> tuple[float, float]:
    """Bytes of one device, and of the host for one process."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    host = total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (float(torch.cuda.get_device_properties(0).total_memory) if cuda else host), host


def _add_tokens(recipe: Recipe, tokenizer: Any) -> bool:
    missing = missing_tokens(tokenizer, profile_of(recipe))
    if not missing or not recipe.model.add_tokens:
        return False
    tokenizer.add_special_tokens({"additional_special_tokens": missing}, False)
    return True


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
    taken = samples[: recipe.correction.rows or None]
    warm = unchanged(samples, recipe.warmup.rows)
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
            if have(name)
        }
        | {"python": platform.python_version()},
    }
    return plan, unseen, record


def _attention(recipe: Recipe, cuda: bool) -> str:
    if recipe.model.attention != "auto":
        return recipe.model.attention
    return "flash_attention_2" if cuda and have("flash_attn") else "sdpa"


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


def _arguments(recipe: Recipe, out: Path, *, steps: int, passes: int, heldout: bool) -> Any:
    cuda, tensorboard = torch.cuda.is_available(), have("tensorboard")
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


def _model(recipe: Recipe, tokenizer: Any, added: bool, attention: str) -> Any:
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
    if added and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return model


def _lora(recipe: Recipe) -> Any:
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


def _finish(recipe: Recipe, out: Path, best: int | None) -> None:
    """Make OUT/model from the last or the best checkpoint."""
    step = keeping.complete(out)[-1]
    if recipe.save.final == "best" and best in keeping.complete(out):
        step = best
    checkpoint, target = out / "checkpoints" / keeping.name(step), out / "model"
    keeping.export(checkpoint, target)
    if recipe.method != "full" and recipe.lora.merge:
        from peft import PeftModel  # noqa: PLC0415

        tokenizer: Any = AutoTokenizer.from_pretrained(target)
        base: Any = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32)
        if len(tokenizer) > base.get_input_embeddings().num_embeddings:
            base.resize_token_embeddings(len(tokenizer))
        merged: Any = PeftModel.from_pretrained(base, target).merge_and_unload(safe_merge=True)
        temp = out / ".model-merged"
        shutil.rmtree(temp, ignore_errors=True)
        if recipe.precision == "bf16":
            merged = merged.to(torch.bfloat16)
        merged.save_pretrained(temp)
        tokenizer.save_pretrained(temp)
        shutil.copy2(target / keeping.RECORD, temp / keeping.RECORD)
        keeping.replace(temp, target)
    print(f"saved {target} (step {step})")
