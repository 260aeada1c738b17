"""What a run will take, before anything is loaded. Estimates: no figure here was measured.

Bytes per weight: 16-bit weights and gradients (2 + 2), 32-bit copy and two Adam moments (12); in
single precision 4 + 4 + 8. ZeRO shares out optimizer state (1), gradients (2), weights (3).
Activations: about 34 bytes per token, layer and hidden unit without recomputation (16-bit,
attention that does not keep its matrix), else 2 and one layer's 34. The logits of a whole batch are
never there at once: TRL takes the head and the loss in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import ConfigError
from training.recipe.config import Recipe

GIB = float(1 << 30)
# Dense 16-bit TFLOP/s of one device, from the makers' data sheets.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0}
# What a well-fed device reaches of it; for the estimate of time only.
_REACHED = 0.4
# Framework, fragments, gathered layers.
_SPARE = 1.15


@dataclass(frozen=True, slots=True)
class Size:
    """`parameters` in all; `layers` and `hidden` 0 where unknown."""

    parameters: int
    layers: int = 0
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device, and in the host's memory for its share."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    host: float

    @property
    def device(self) -> float:
        return (self.weights + self.gradients + self.optimizer + self.activations) * _SPARE


def size(recipe: Recipe) -> Size:
    """From the base's config.json where it is here, else from the recipe. Loads no weights.

    Raises `ConfigError` where neither says.
    """
    base = Path(recipe.model.base)
    if (base / "config.json").is_file():
        import torch  # noqa: PLC0415  (a plan of a named recipe needs neither)
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

        config: Any = AutoConfig.from_pretrained(base, local_files_only=True)
        with torch.device("meta"):
            factory: Any = AutoModelForCausalLM
            model = factory.from_config(config)
        text = config.get_text_config(decoder=True)
        return Size(model.num_parameters(), text.num_hidden_layers, text.hidden_size)
    if recipe.parameters is None:
        raise ConfigError(
            f"model.base: {recipe.model.base} is no folder with a config.json; a plan then needs "
            "the key parameters (billions)"
        )
    count = recipe.parameters * 1e9
    # Shapes of this family: about 12 x layers x hidden^2 parameters, hidden about 100 x layers.
    layers = max(1, round((count / 12e4) ** (1 / 3)))
    return Size(int(count), layers, 100 * layers)


def memory(recipe: Recipe, shape: Size, devices: int) -> Memory:
    """Bytes that each of `devices` needs at the peak of a step."""
    count, half = shape.parameters, recipe.precision == "bf16"
    zero = recipe.zero
    # Without DeepSpeed the weights stay in single precision and only the arithmetic is 16-bit.
    narrow = half and zero.stage > 0
    weights = count * (2.0 if narrow else 4.0)
    learnt = float(count)
    if recipe.method != "full":
        # Two factors for each of about seven matrices a layer.
        learnt = 14.0 * shape.layers * shape.hidden * recipe.lora.rank
        weights = count * (0.6 if recipe.method == "qlora" else 2.0 if half else 4.0)
    gradients = learnt * (2.0 if narrow else 4.0)
    optimizer = learnt * (12.0 if narrow else 8.0)
    host = 0.0
    if zero.stage >= 1:
        optimizer /= devices
    if zero.stage >= 2:
        gradients /= devices
    if zero.stage >= 3:
        weights /= devices
    if zero.offload:
        host, optimizer = optimizer, 0.0
        if zero.stage == 3:
            host, weights = host + weights, 0.0
    tokens = recipe.optim.micro_batch * recipe.data.length
    unit = float(tokens * shape.hidden) * (1 if half else 2)
    full = 34 * unit
    kept = (
        shape.layers * 2 * unit + full if recipe.activation_checkpointing else shape.layers * full
    )
    return Memory(weights, gradients, optimizer, kept, host)


def seconds(recipe: Recipe, shape: Size, tokens: float, devices: int, peak_tflops: float) -> float:
    """Time for that many tokens at 40% of the devices' peak."""
    per_token = (8 if recipe.activation_checkpointing else 6) * shape.parameters
    return per_token * tokens / (devices * peak_tflops * 1e12 * _REACHED)


def step_flops(shape: Size, tokens: float, length: float) -> float:
    """Useful floating-point operations of a step (recomputation does not count), where a token's
    example has `length` tokens."""
    return tokens * (6.0 * shape.parameters + 6.0 * shape.layers * shape.hidden * length)


def peak_of(name: str) -> float | None:
    """TFLOP/s of a device by its name, None where it is not known."""
    return next((peak for part, peak in PEAK.items() if part in name.upper()), None)


def must_fit(recipe: Recipe, shape: Size, devices: int, device: float, host: float | None) -> None:
    """Raise `ConfigError` where the estimate is over what a device, or its host, has (bytes)."""
    need = memory(recipe, shape, devices)
    if need.device > device:
        fitting = [
            f"zero.stage: {stage}"
            for stage in range(recipe.zero.stage + 1, 4)
            if memory(at(recipe, stage, recipe.zero.offload), shape, devices).device <= device
        ]
        hint = fitting[0] if fitting else "more devices, zero.offload, lora or smaller batches"
        raise ConfigError(
            f"zero.stage: {recipe.zero.stage} does not fit: about {need.device / GIB:.1f} GiB per "
            f"device by estimate, and there are {device / GIB:.1f}; try {hint}"
        )
    if host is not None and need.host > host:
        raise ConfigError(
            f"zero.offload: about {need.host / GIB:.1f} GiB of host memory per device by estimate, "
            f"and there are {host / GIB:.1f}"
        )


def at(recipe: Recipe, stage: int, offload: bool) -> Recipe:
    """The same recipe with another ZeRO stage."""
    return replace(recipe, zero=replace(recipe.zero, stage=stage, offload=offload))
