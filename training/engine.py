"""The training loop, the model's shape, and saving: shared by every stage."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from training.packing import IGNORE, Batch


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of a few million parameters."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    ff: int = 640
    positions: int = 1024


@dataclass(frozen=True, slots=True)
class Optim:
    """AdamW with warm-up, cosine decay to `floor` x lr, and gradient clipping."""

    steps: int
    lr: float = 2e-3
    floor: float = 0.05
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    rows: int = 12
    length: int = 384


@dataclass(frozen=True, slots=True)
class Deep:
    """Deep supervision, for a model that has to judge a sentence before it writes anything.

    Such a judgement is a chain, each link on a layer above the last: what should stand here (after
    `exit` layers), whether that is what does stand here (`fault`, read by a linear probe that is
    thrown away, before the last layer), and whether there was any fault (the first token of the
    answer). Learnt from the end alone, the lower links come very late; so each has its own loss.
    """

    exit: int
    exit_weight: float = 0.5
    fault_weight: float = 1.0
    # One token of a wrong sentence is the fault, some thirty are not.
    fault_balance: float = 4.0


class TrainingDiverged(Exception):
    """The loss is not a number any more."""


def device() -> torch.device:
    """Where to train: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """Return a freshly initialised Llama for this tokenizer."""
    torch.manual_seed(seed)
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.ff,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def grow(model: Any, layers: int) -> Any:
    """Return the model with more layers on top, `layers` in all; at first they change nothing."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * layers
    taller = type(model)(config)
    taller.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in taller.model.layers[model.config.num_hidden_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return taller


def learning_rate(step: int, optim: Optim) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return optim.lr * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    model: Any,
    batches: Iterator[Batch],
    optim: Optim,
    *,
    name: str,
    deep: Deep | None = None,
    compiled: bool = True,
    every: int = 0,
    snapshot: Callable[[int], None] | None = None,
) -> list[float]:
    """Train for `optim.steps` steps and return the loss of each. Raises `TrainingDiverged`.

    Runs where the model is (see `device`).

    With `deep`, what each sentence should be and where it goes wrong is learnt on lower layers too.
    `snapshot` is called with the number of steps done, after each `every` steps.
    """
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    device: torch.device = model.device
    probe = torch.nn.Linear(model.config.hidden_size, 1).to(device)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": optim.weight_decay},
        {"params": [*plain, *probe.parameters()] if deep else plain},
    ]
    adam = torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    model.train()
    losses: list[float] = []
    tokens, started = 0, time.monotonic()
    with tqdm(total=optim.steps, desc=name, unit="step", mininterval=5) as bar:
        for step in range(optim.steps):
            batch = next(batches).to(device)
            for group in adam.param_groups:
                group["lr"] = learning_rate(step, optim)
            with torch.autocast(device.type, torch.bfloat16):
                out = forward(
                    input_ids=batch.ids,
                    position_ids=batch.positions,
                    attention_mask=batch.mask,
                    use_cache=False,
                    output_hidden_states=deep is not None,
                )
            wanted = batch.labels != IGNORE
            each = torch.nn.functional.cross_entropy(
                out.logits[wanted].float(), batch.labels[wanted], reduction="none"
            )
            worth = batch.weights[wanted]
            loss = (each * worth).sum() / worth.sum()
            if deep:
                loss = loss + deep_loss(model, out.hidden_states, batch, deep, probe)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"{name}: the loss is {value} at step {step}; lower lr (now {optim.lr})"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
            adam.step()
            adam.zero_grad(set_to_none=True)
            losses.append(value)
            if snapshot and every and (step + 1) % every == 0:
                snapshot(step + 1)
            tokens += batch.ids.numel()
            recent = losses[-50:]
            speed = tokens / (time.monotonic() - started)
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", tok_s=f"{speed:.0f}")
            bar.update()
    return losses


def deep_loss(
    model: Any, states: Sequence[torch.Tensor], batch: Batch, deep: Deep, probe: torch.nn.Linear
) -> torch.Tensor:
    """The losses of the lower links; `states` are the hidden states, (rows, length, hidden)."""
    due, said = batch.known != IGNORE, batch.faults != IGNORE
    loss = probe.weight.sum() * 0
    if due.any():
        with torch.autocast(model.device.type, torch.bfloat16):
            early = model.lm_head(model.model.norm(states[deep.exit][due]))
        loss = loss + deep.exit_weight * torch.nn.functional.cross_entropy(
            early.float(), batch.known[due]
        )
    if said.any():
        loss = loss + deep.fault_weight * torch.nn.functional.binary_cross_entropy_with_logits(
            probe(states[-2][said].float())[:, 0],
            batch.faults[said].float(),
            pos_weight=torch.tensor(deep.fault_balance, device=model.device),
        )
    return loss


def code_version() -> str:
    """Return the commit that the code is at, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def save(model: Any, tokenizer: Any, out: Path, record: dict[str, Any]) -> None:
    """Save bf16 weights, tokenizer and `training_config.json`; `out` is never half there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    plain = {k: asdict(v) if is_dataclass(v) else v for k, v in record.items()}  # type: ignore[arg-type]
    plain |= {"code": code_version(), "torch": torch.__version__}
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(temp)
    tokenizer.save_pretrained(temp)
    (temp / "training_config.json").write_text(json.dumps(plain, indent=2) + "\n")
    temp.chmod(0o755)
    for file in temp.iterdir():
        file.chmod(0o644)
    if out.exists():
        shutil.rmtree(out)
    temp.rename(out)
