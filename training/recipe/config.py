"""What a run is: one YAML file, read strictly. Every error names the key."""

from __future__ import annotations

import contextlib
import difflib
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from stream_aligner_proxy.core.prompts import PROFILES
from training.config import ConfigError, build

RECIPES = Path(__file__).parent.parent / "configs" / "recipes"


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained, and for which prompt profile.

    `base`: a folder or a hub name. `add_tokens`: give the tokenizer the profile's control tokens
    where it lacks them. `keep_token`: an unchanged sentence is answered by the keep token, where
    the profile has one. `attention`: `auto`, `segments` (ours), or a name that transformers knows.
    """

    base: str
    profile: str = "compact"
    add_tokens: bool = False
    keep_token: bool = True
    attention: str = "auto"
    liger: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """`length`: tokens in a packed row, and at most in an example. `too_long`: `error` or `drop`.
    `heldout`: share of the groups kept out for the loss on unseen rows, where DIR has no file of
    its own for them."""

    length: int = 2048
    pack: bool = True
    too_long: str = "error"
    heldout: float = 0.02


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run. `rows`: examples taken at most, 0 for all. `lr_warmup`: share of the
    steps over which the learning rate rises; it falls along a cosine after that."""

    lr: float = 2e-5
    epochs: int = 1
    rows: int = 0
    lr_warmup: float = 0.03


@dataclass(frozen=True, slots=True)
class Optim:
    """`batch`: packed rows in one optimizer step over all devices; `micro_batch` those in one pass
    on one device. The steps are the same however many devices share them."""

    batch: int = 64
    micro_batch: int = 4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class Lora:
    """`merge`: the result is a whole model; otherwise an adapter."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"
    merge: bool = True


@dataclass(frozen=True, slots=True)
class Zero:
    """DeepSpeed's stage, 0 for none; `offload`: optimizer state (and weights at stage 3) in host
    memory."""

    stage: int = 0
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Save:
    """A checkpoint every so many steps; the last and the best are kept. `final`: which of them
    becomes the result."""

    every: int = 200
    final: str = "last"


@dataclass(frozen=True, slots=True)
class Report:
    """`wandb`: project to report to. `peak_tflops`: of one device, for MFU, where it is not one
    that is known."""

    every: int = 1
    wandb: str | None = None
    peak_tflops: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """One run. `parameters`: of the base, in billions, for the plan of a base that is not here.
    `warmup.rows` 0 leaves the identity warm-up out."""

    name: str
    model: Model
    about: str = ""
    seed: int = 1
    parameters: float | None = None
    method: str = "full"
    precision: str = "bf16"
    activation_checkpointing: bool = False
    data: Data = field(default_factory=Data)
    warmup: Stage = field(default_factory=lambda: Stage(rows=10_000))
    correction: Stage = field(default_factory=lambda: Stage(epochs=3))
    optim: Optim = field(default_factory=Optim)
    lora: Lora = field(default_factory=Lora)
    zero: Zero = field(default_factory=Zero)
    save: Save = field(default_factory=Save)
    report: Report = field(default_factory=Report)


_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.profile": tuple(PROFILES),
    "method": ("full", "lora", "qlora"),
    "precision": ("bf16", "fp32"),
    "data.too_long": ("error", "drop"),
    "zero.stage": (0, 1, 2, 3),
    "save.final": ("last", "best"),
}
_POSITIVE = (
    "data.length", "optim.batch", "optim.micro_batch", "warmup.epochs", "correction.epochs",
    "save.every", "report.every", "warmup.lr", "correction.lr", "lora.rank", "lora.alpha",
)  # fmt: skip
_SHARES = ("data.heldout", "warmup.lr_warmup", "correction.lr_warmup", "lora.dropout")


def named() -> list[str]:
    """The recipes that are shipped."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def load_recipe(config: str, settings: typing.Sequence[str] = ()) -> Recipe:
    """A recipe from a file, or by the name of a shipped one; `settings` are `dotted.key=value`.

    Raises `ConfigError`.
    """
    file = RECIPES / f"{config}.yaml" if config in named() else Path(config)
    if not file.is_file():
        near = _near(config, named())
        raise ConfigError(f"{config}: is neither a file nor a shipped recipe{near}")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not YAML: {error}") from error
    for setting in settings:
        _set(data, setting)
    _known(Recipe, data, "")
    recipe = build(Recipe, data)
    _check(recipe)
    return recipe


def _near(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _set(data: Any, setting: str) -> None:
    key, eq, text = setting.partition("=")
    if not eq or not key:
        raise ConfigError(f"--set {setting}: must be key=value")
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {}) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"--set {key}: there is no such section")
    value = yaml.safe_load(text)
    # YAML 1.1 reads 2e-5 as text.
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    data[last] = value


def _known(kind: type[Any], data: Any, where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where.rstrip('.') or 'the config'}: must be a mapping")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"{where}{key}: unknown key{_near(str(key), known)}")
        if is_dataclass(hints[key]):
            _known(typing.cast(type[Any], hints[key]), value, f"{where}{key}.")


def _check(recipe: Recipe) -> None:
    def at(path: str) -> Any:
        value: Any = recipe
        for name in path.split("."):
            value = getattr(value, name)
        return value

    for path, choices in _CHOICES.items():
        if at(path) not in choices:
            raise ConfigError(f"{path}: {at(path)!r} is none of {', '.join(map(str, choices))}")
    for path in _POSITIVE:
        if at(path) <= 0:
            raise ConfigError(f"{path}: must be more than 0, got {at(path)}")
    for path in _SHARES:
        if not 0 <= at(path) < 1:
            raise ConfigError(f"{path}: must be from 0 to below 1, got {at(path)}")
    if recipe.optim.batch % recipe.optim.micro_batch:
        raise ConfigError("optim.micro_batch: must divide optim.batch")
    if recipe.zero.offload and recipe.zero.stage == 0:
        raise ConfigError("zero.offload: needs zero.stage 1, 2 or 3")
    if recipe.method == "qlora" and recipe.zero.stage == 3:
        raise ConfigError(
            "zero.stage: 3 cannot share out the 4-bit weights of qlora; use 2 or less"
        )
    if recipe.save.final == "best" and recipe.data.heldout == 0:
        raise ConfigError("save.final: best is told by held-out rows, but data.heldout is 0")


def accumulation(recipe: Recipe, devices: int) -> int:
    """Passes of each device in one step. Raises `ConfigError` where the batch cannot be shared."""
    passes, rest = divmod(recipe.optim.batch, recipe.optim.micro_batch * devices)
    if rest or not passes:
        raise ConfigError(
            f"optim.batch: {recipe.optim.batch} rows cannot be shared evenly by {devices} devices "
            f"that take {recipe.optim.micro_batch} (optim.micro_batch) at a time"
        )
    return passes
