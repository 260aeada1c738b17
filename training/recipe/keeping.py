"""Checkpoints: written beside, renamed into place; the last and the best are kept.

OUT/checkpoints/checkpoint-N is whole or not there. OUT/.writing is what was being written.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

WRITING = ".writing"
RECORD = "training_config.json"


class NoSpace(Exception):
    """The disk has too little room; the message says how much there is."""


def name(step: int) -> str:
    return f"checkpoint-{step}"


def complete(out: Path) -> list[int]:
    """Steps of the checkpoints that are there, in order."""
    found = (out / "checkpoints").glob("checkpoint-*")
    return sorted(int(p.name.split("-")[1]) for p in found if (p / RECORD).is_file())


def publish(out: Path, step: int, record: dict[str, Any]) -> None:
    """Give the checkpoint in `.writing` its record and its name, once it is on the disk."""
    temp = out / WRITING / name(step)
    write(temp / RECORD, record)
    for file in temp.rglob("*"):
        if file.is_file():
            _sync(file)
    target = out / "checkpoints" / name(step)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    temp.rename(target)
    _sync(target.parent)


def rotate(out: Path, best: int | None) -> None:
    """Leave the last checkpoint and the best."""
    for step in complete(out)[:-1]:
        if step != best:
            shutil.rmtree(out / "checkpoints" / name(step))


def room_for(folder: Path, needed: float) -> None:
    """Raise `NoSpace` where the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"{folder}: {free / 2**30:.1f} GiB are free, and about {needed / 2**30:.1f} are needed "
            "to write a checkpoint beside those kept"
        )


_STATE = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "latest")


def export(checkpoint: Path, target: Path) -> None:
    """Make `target` the model of a checkpoint, without what only a resume needs.

    Files are linked where the file system can, so that it takes no room.
    """
    temp = target.with_name(f".{target.name}-new")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if (
            file.is_file()
            and not file.name.startswith(_STATE)
            and not file.name.startswith("zero_to")
        ):
            try:
                os.link(file, temp / file.name)
            except OSError:
                shutil.copy2(file, temp / file.name)
    replace(temp, target)


def replace(temp: Path, target: Path) -> None:
    """Put a finished folder in a target's place, to be read by whoever serves it."""
    temp.chmod(0o755)
    for file in temp.iterdir():
        file.chmod(0o644)  # safetensors lets its owner alone read
    if target.exists():
        shutil.rmtree(target)
    temp.rename(target)


def write(file: Path, record: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    temp = file.with_name(f".{file.name}")
    temp.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temp.rename(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(file: Path) -> dict[str, Any]:
    """What `write` wrote."""
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record
