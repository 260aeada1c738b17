"""The processes of a run: who they are, and what the machine must have before they start."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import ConfigError
from training.recipe.config import Recipe


@dataclass(frozen=True, slots=True)
class Machine:
    """`devices` in all; `lead` is the process that speaks for them. `device` and `host`: bytes of
    memory of one device, and of the host for one process."""

    devices: int
    lead: bool
    cuda: bool
    device: float
    host: float


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


def join(recipe: Recipe) -> Machine:
    """Meet the other processes, where a launcher has started several or DeepSpeed is used."""
    cuda = torch.cuda.is_available()
    if recipe.zero.stage:
        _alone_is_one_of_one()
        if not cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if not cuda or recipe.zero.offload:
            _compile_helpers(cuda, recipe.zero.offload)
        if not cuda:
            import deepspeed  # noqa: PLC0415

            deepspeed.init_distributed(dist_backend="gloo")
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    host = total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Machine(
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        lead=os.environ.get("RANK", "0") == "0",
        cuda=cuda,
        device=float(torch.cuda.get_device_properties(0).total_memory) if cuda else host,
        host=host,
    )


def _alone_is_one_of_one() -> None:
    """DeepSpeed wants a launcher's environment even for one process."""
    if "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip


def helpers() -> Path:
    """Where they are compiled to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")
    version = ".".join(map(str, sys.version_info[:2]))
    return root / f"stream_aligner_proxy-{version}-{torch.__version__}"


def _compile_helpers(cuda: bool, offload: bool) -> None:
    """Compile and load DeepSpeed's C++ helpers, one process at a time.

    torch marks a build with a file, and a process that is killed leaves it behind: every later
    start would wait for it for ever. So there is a folder of our own, under a lock that ends with
    its process; whoever holds that knows that a mark found there is of nobody.
    """
    # torch looks for ninja on the PATH, and an environment's own need not be there.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    folder = helpers()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    from deepspeed.accelerator import get_accelerator  # noqa: PLC0415

    accelerator: Any = get_accelerator()
    names = [] if cuda else ["ShareMemCommBuilder"]
    names += ["CPUAdamBuilder"] if offload else []
    with _only_one(folder / "in-use"):
        for mark in folder.glob("*/lock"):
            mark.unlink()
        for name in names:
            builder = accelerator.create_op_builder(name)
            if builder is not None and builder.is_compatible(False):
                builder.load(verbose=False)


@contextmanager
def _only_one(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
