"""The launch files are dry-run: their own command lines, in small, on this machine."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training import recipe_parts
from training.recipe.config import load_recipe

DEPLOY = recipe_parts.ROOT / "deploy" / "training"


def job() -> tuple[Any, Any]:
    service, job = yaml.safe_load_all((DEPLOY / "job.yaml").read_text())
    return service, job


def test_the_job_agrees_with_itself_and_names_a_shipped_recipe() -> None:
    service, batch = job()
    spec, pod = batch["spec"], batch["spec"]["template"]["spec"]
    container = pod["containers"][0]
    command = container["command"]
    options = dict(part.lstrip("-").split("=", 1) for part in command if "=" in part)
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert spec["completions"] == spec["parallelism"] == int(options["nnodes"])
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    first = f"{batch['metadata']['name']}-0.{pod['subdomain']}"
    assert options["rdzv-endpoint"] == f"{first}:{service['spec']['ports'][0]['port']}"
    recipe = load_recipe(options["config"], [options["set"]])
    assert recipe.zero.stage == 3
    # No pod has a token for a hub: the base is in what is mounted.
    assert recipe.model.base.startswith(options["data"] + "/")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs the extra `recipe` (TRL)")
def test_two_nodes_find_each_other_by_the_jobs_command_and_train(tmp_path: Path) -> None:
    """Two torchrun of one process each stand for the two pods."""
    pytest.importorskip("deepspeed", reason="needs the extra `recipe` (DeepSpeed)")
    recipe_parts.base(tmp_path / "base")
    recipe_parts.rows(tmp_path / "train.jsonl")
    recipe_parts.recipe(tmp_path, zero={"stage": 3})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "nproc-per-node": "1",
        "rdzv-endpoint": f"127.0.0.1:{port}",
        "config": str(tmp_path / "recipe.yaml"),
        "set": f"model.base={tmp_path / 'base'}",
        "data": str(tmp_path),
        "out": str(tmp_path / "out"),
    }
    command = job()[1]["spec"]["template"]["spec"]["containers"][0]["command"]
    pods = []
    for index in range(2):
        line = [sys.executable, "-m", "torch.distributed.run"]
        for part in command[1:]:
            name, eq, value = part.lstrip("-").partition("=")
            value = here.get(name, value).replace("$(JOB_COMPLETION_INDEX)", str(index))
            line.append(f"--{name}={value}" if eq else part)
        # What the pods' own names do in a cluster: the first one is where the others meet.
        line.insert(3, f"--rdzv-conf=is_host={int(index == 0)}")
        log = (tmp_path / f"pod-{index}").open("w")
        pods.append(
            subprocess.Popen(
                line, env=recipe_parts.ENV, cwd=recipe_parts.ROOT, stdout=log, stderr=log
            )
        )
        log.close()
    codes = [pod.wait() for pod in pods]
    assert codes == [0, 0], (tmp_path / "pod-0").read_text()[-3000:]
    record = json.loads((tmp_path / "out" / "model" / "training_config.json").read_text())
    assert record["steps"]["all"] == max(recipe_parts.curve(tmp_path / "out"))


@pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed"), reason="needs the extra `recipe` (DeepSpeed)"
)
@pytest.mark.filterwarnings("ignore")
def test_the_hostfile_is_read_as_two_nodes_of_eight() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(DEPLOY / "hostfile")) == {"node-0": 8, "node-1": 8}
