"""Helm's engine for the tests: one process for each cluster, asked one thing at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.cluster import Cluster, cluster

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / ".helm"
CHART = ROOT / "helm" / "stream-aligner-proxy"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
RELEASE = "shop"


class HelmError(Exception):
    """What Helm says is wrong."""


class Helm:
    """`cluster` is where it installs into."""

    def __init__(self, process: "subprocess.Popen[str]", cluster: Cluster) -> None:
        self._process = process
        self.cluster = cluster

    def __call__(self, action: str, *arguments: object) -> Any:
        """Raises `HelmError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([action, *arguments]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmError(answer["error"])
        return answer["result"]

    def install(self, values: dict[str, Any], chart: Path = CHART) -> Cluster:
        self("install", RELEASE, str(chart), values)
        return self.cluster

    def upgrade(self, values: dict[str, Any], chart: Path = CHART) -> Cluster:
        self("upgrade", RELEASE, str(chart), values)
        return self.cluster

    def refusal(self, values: dict[str, Any]) -> str:
        """Why it does not install with these."""
        with pytest.raises(HelmError) as refused:
            self.install(values)
        assert not self.cluster.objects
        return str(refused.value)


def values_of(example: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / "examples" / f"{example}.yaml").read_text())
    return loaded


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays values over values: maps are merged, the rest is replaced."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = overlaid(known, value) if both else value
    return merged


@contextmanager
def running() -> Iterator[Helm]:
    """Helm, and a cluster of its own. Skips the test where this machine has no Helm, unless
    HELM_REQUIRED is set."""
    if not (ENGINE / "helm_sdkpy").is_dir():
        reason = "there is no .helm: `make helm` makes it"
        if os.environ.get("HELM_REQUIRED"):
            pytest.fail(reason)
        pytest.skip(reason)
    with cluster() as into:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.helm_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with process:
            try:
                print(json.dumps([str(ENGINE), into.kubeconfig()]), file=process.stdin, flush=True)
                yield Helm(process, into)
            finally:
                process.kill()
