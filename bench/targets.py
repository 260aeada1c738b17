"""The gateways that `bench.gateway` measures: how each is configured, started and recognised."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.generator import KEY
from bench.stack import ROOT

# Rules that match nothing: the aligner reads every sentence and keeps it.
_RULES = [
    {"find": r"\butili[sz]e\b", "replace": "use"},
    {"find": r"(?i)\bas an ai\b.*", "replace": ""},
    {"find": r"\bin order to\b", "replace": "to"},
]
_LITELLM = ROOT / "runs" / "litellm"
_NGINX = """
worker_processes 1; daemon off; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 300; keepalive_requests 100000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


class Unavailable(Exception):
    """A target that cannot run here; says why."""


@dataclass(frozen=True)
class Target:
    """One gateway.

    `command` makes its files in a folder and gives the command line and what it adds to the
    environment; raises `Unavailable`. `exact`: it must pass the upstream's bytes on as they are.
    """

    name: str
    command: Callable[[Path, int, int], tuple[Sequence[str], Mapping[str, str]]]
    exact: bool = False
    start_seconds: float = 60
    ready: str = "/v1/models"


@dataclass
class Running:
    """A started target, all of whose processes are pinned to one core from the start."""

    target: Target
    port: int
    process: "subprocess.Popen[bytes] | None" = None
    skipped: str = ""


def ours(mode: str) -> Target:
    def command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
        rules, config = folder / "rules.yaml", folder / f"{mode}.yaml"
        rules.write_text(yaml.safe_dump(_RULES))
        base_url = f"http://127.0.0.1:{upstream}/v1"
        config.write_text(
            yaml.safe_dump(
                {
                    "upstreams": [{"name": "mock", "base_url": base_url, "dialect": "vllm"}],
                    "aligner": {"backend": "rules", "path": str(rules)},
                    "alignment": {"mode": mode},
                }
            )
        )
        command = ["-m", "stream_aligner_proxy.cli", "serve", "--config", str(config)]
        return [sys.executable, *command, "--port", str(port)], {}

    return Target(f"ours-{mode}", command, exact=mode == "off")


def _found_nginx() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def _nginx(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    found = _found_nginx()
    if found is None:
        raise Unavailable("nginx is not installed")
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, upstream=upstream))
    return [found, "-c", str(config), "-p", str(folder), "-e", "stderr"], {}


def _fastapi(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
    base_url = f"http://127.0.0.1:{upstream}/v1"
    command = [sys.executable, "-m", "bench.relays", "--port", str(port), "--upstream", base_url]
    return command, {}


def litellm(venv: Path | None) -> Target:
    """LiteLLM's proxy from `venv`; without one it is installed, once, into `runs/litellm`."""

    def command(folder: Path, port: int, upstream: int) -> tuple[list[str], dict[str, str]]:
        found = (venv or _installed()) / "bin" / "litellm"
        if not found.exists():
            raise Unavailable(f"{found} does not exist")
        config = folder / "litellm.yaml"
        params = {
            "model": "openai/mock",
            "api_base": f"http://127.0.0.1:{upstream}/v1",
            "api_key": KEY,
        }
        config.write_text(
            yaml.safe_dump({"model_list": [{"model_name": "mock", "litellm_params": params}]})
        )
        # Nothing may be fetched or reported while it runs.
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        quiet["LITELLM_MASTER_KEY"] = KEY
        arguments = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        return [str(found), *arguments, "--telemetry", "False"], quiet

    return Target("litellm", command, start_seconds=120, ready="/health/liveliness")


def _installed() -> Path:
    venv = _LITELLM
    if (venv / "bin" / "litellm").exists():
        return venv
    print("installing LiteLLM into runs/litellm …", file=sys.stderr, flush=True)
    with tempfile.TemporaryFile("w+") as log:
        for command in (
            [sys.executable, "-m", "venv", str(venv)],
            [str(venv / "bin" / "pip"), "install", "--quiet", "litellm[proxy]"],
        ):
            try:
                subprocess.run(command, check=True, timeout=600, stdout=log, stderr=log)
            except (subprocess.SubprocessError, OSError) as error:
                log.seek(0)
                last = (log.read().strip().splitlines() or [""])[-1]
                raise Unavailable(f"LiteLLM does not install: {error}; {last}"[:300]) from error
    return venv


def versions(litellm_venv: Path | None) -> dict[str, str]:
    """Those of the gateways that are not ours, where they can be found."""
    found: dict[str, str] = {}
    if nginx := _found_nginx():
        told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
        found["nginx"] = told.strip().rpartition("/")[2]
    venv = litellm_venv or _LITELLM
    for folder in venv.glob("lib/python*/site-packages/litellm-*.dist-info"):
        found["litellm"] = folder.name.removeprefix("litellm-").removesuffix(".dist-info")
    return found


def targets(litellm_venv: Path | None) -> list[Target]:
    return [
        ours("off"),
        ours("stream"),
        Target("nginx", _nginx, exact=True),
        Target("fastapi-httpx-parse", _fastapi),
        litellm(litellm_venv),
    ]
