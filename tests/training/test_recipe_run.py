"""Whole runs of training.recipe on tiny random models, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stream_aligner_proxy.aligners.checkpoint import load
from tests.training import recipe_parts
from tests.training.recipe_parts import curve
from training.recipe import launch

pytest.importorskip("trl", reason="needs the extra `recipe` (TRL)")
# The first run with DeepSpeed compiles its helpers: a minute each, or several where there is other
# work to do.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

# Sums in another order: float32 rounds each of them by 6e-8 of its size.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe_parts.base(folder / "base")
    recipe_parts.rows(folder / "train.jsonl")
    recipe_parts.recipe(folder)
    return folder


def command(folder: Path, out: Path, *settings: str, processes: int = 0) -> list[str]:
    start = [sys.executable, "-m", "training.recipe"]
    if processes:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc_per_node", str(processes), "-m", "training.recipe"]
    sets = [part for setting in settings for part in ("--set", setting)]
    files = ["--config", folder / "recipe.yaml", "--data", folder, "--out", out]
    return [*start, "train", *map(str, files), *sets]


def run(*args: Any, processes: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args, processes=processes),
        env=recipe_parts.ENV,
        cwd=recipe_parts.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """An uninterrupted run of one process."""
    done = run(folder, folder / "plain")
    assert done.returncode == 0, done.stderr
    return folder / "plain"


def test_a_run_ends_in_a_folder_that_loads_with_its_profile(plain: Path) -> None:
    checkpoint = load(plain / "model", device="cpu")
    assert checkpoint.profile == "compact"
    record = json.loads((plain / "model" / "training_config.json").read_text())
    assert record["recipe"]["correction"]["epochs"] == 2
    assert len(record["data"]["fingerprint"]) == 32
    assert record["code"]
    losses = curve(plain)
    assert sorted(losses) == list(range(1, record["steps"]["all"] + 1))
    assert losses[len(losses)] < losses[1]
    assert list((plain / "tensorboard").glob("events*"))
    assert len(list((plain / "checkpoints").iterdir())) <= 2


def told(out: Path) -> tuple[int, bool]:
    """What the last checkpoint says of how it was made: ZeRO's stage, and whether the optimizer
    was DeepSpeed's own for host memory. Each of two processes had a share of its state."""
    shares = sorted(out.glob("checkpoints/*/global_step*/*_optim_states.pt"))[-2:]
    first, second = (
        torch.load(file, weights_only=False)["optimizer_state_dict"] for file in shares
    )
    assert first["partition_count"] in (2, [2, 2])
    assert first["zero_stage"] == second["zero_stage"]
    state = first.get("base_optimizer_state") or first["optimizer_state_dict"]
    # torch's Adam has no such switch.
    return int(first["zero_stage"]), "bias_correction" in state["param_groups"][0]


# Reading such a checkpoint imports DeepSpeed, which warns of what it imports.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("stage", "offload"), [(1, False), (2, False), (3, False), (3, True)])
def test_zero_on_two_processes_has_the_curve_of_one(
    folder: Path, plain: Path, stage: int, offload: bool
) -> None:
    pytest.importorskip("deepspeed", reason="needs the extra `recipe` (DeepSpeed)")
    # A process that was killed while it compiled leaves this; torch alone would wait for it.
    for helper in ("deepspeed_shm_comm", "cpu_adam"):
        stale = launch.helpers() / helper / "lock"
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.touch()
    out = folder / f"zero-{stage}-{offload}"
    done = run(folder, out, f"zero.stage={stage}", f"zero.offload={offload}", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert told(out) == (stage, offload)
    assert curve(out) == pytest.approx(curve(plain), abs=TOLERANCE)
    model: Any = AutoModelForCausalLM.from_pretrained(out / "model")
    alone: Any = AutoModelForCausalLM.from_pretrained(plain / "model")
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)


def killed(line: list[str], out: Path) -> None:
    """Start a run, and kill it and its processes once it has a checkpoint."""
    process = subprocess.Popen(
        line,
        env=recipe_parts.ENV,
        cwd=recipe_parts.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("checkpoints/*/training_config.json")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()


@pytest.mark.parametrize(
    "settings",
    [(), ("zero.stage=3",), ("zero.stage=2", "zero.offload=true")],
    ids=["one-process", "zero-3", "zero-2-offload"],
)
def test_a_killed_run_goes_on_with_the_same_curve(
    folder: Path, plain: Path, settings: tuple[str, ...]
) -> None:
    processes = 2 if settings else 0
    if processes:
        pytest.importorskip("deepspeed", reason="needs the extra `recipe` (DeepSpeed)")
    out = folder / f"killed-{'-'.join(settings)}"
    killed(command(folder, out, *settings, processes=processes), out)
    done = run(folder, out, *settings, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from step" in done.stdout
    assert curve(out) == pytest.approx(curve(plain), abs=TOLERANCE if processes else 1e-6)


def test_another_recipe_does_not_go_on_with_a_run(folder: Path, plain: Path) -> None:
    done = run(folder, plain, "correction.lr=0.1")
    assert done.returncode == 2
    assert "holds a run with another recipe" in done.stderr


@pytest.mark.parametrize("logged_every", [1, 100])
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good(
    folder: Path, logged_every: int
) -> None:
    out = folder / f"diverged-{logged_every}"
    wild = ["correction.lr=1e36", "optim.clip=1e30"]
    done = run(folder, out, *wild, "save.every=1", f"report.every={logged_every}")
    assert done.returncode == 4, done.stderr[-2000:]
    assert "lower the learning rate" in done.stderr
    kept = list((out / "checkpoints").glob("*"))
    assert kept
    for checkpoint in kept:
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_merged_lora_is_a_whole_model(folder: Path) -> None:
    """Also where the base's weights were shared out, and in 16 bits."""
    pytest.importorskip("deepspeed", reason="needs the extra `recipe` (DeepSpeed)")
    out = folder / "lora"
    lora = ["method=lora", "precision=bf16", "activation_checkpointing=true"]
    done = run(folder, out, *lora, "zero.stage=3", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load(out / "model", device="cpu").profile == "compact"


# PEFT still asks for a name that transformers will drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_loads_beside_its_base(folder: Path) -> None:
    pytest.importorskip("peft")
    out = folder / "adapter"
    done = run(folder, out, "method=lora", "lora.merge=false")
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = load(folder / "base", adapter=out / "model", device="cpu")
    assert loaded.profile == "compact"


def test_what_is_not_here_is_said_at_once(folder: Path) -> None:
    done = run(folder, folder / "none", "method=qlora")
    assert done.returncode == 2
    assert "method: " in done.stderr
