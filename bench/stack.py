"""Real processes for a benchmark: the demo upstream, proxies in front of it, and a client.

The client is raw HTTP, so that its own cost is small and every frame's arrival is seen.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "stream_aligner_proxy" / "demo" / "models"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(arguments: Sequence[str], ready: str, seconds: float = 120) -> Iterator[None]:
    """Run `python -m …` until the block ends; `ready` is a URL that answers 200 once it serves."""
    with program([sys.executable, "-m", *arguments], ready, seconds):
        yield


@contextmanager
def program(
    command: Sequence[str], ready: str, seconds: float = 120, more: Mapping[str, str] | None = None
) -> Iterator[None]:
    """As `process`, for any command; `more` is added to its environment."""
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(more or {})},
        )
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    if httpx.get(ready, timeout=2, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(
                        f"{Path(command[0]).name} did not start:\n{log.read()[-4000:]}"
                    )
                time.sleep(0.1)
            yield
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def stack(
    proxies: Mapping[str, Mapping[str, Any]], upstream_url: str | None = None
) -> Iterator[dict[str, str]]:
    """The demo upstream and one proxy per entry; yields their base URLs, and `upstream`'s.

    An entry holds what differs from the demo's configuration: `dialect`, `aligner`, `alignment`.
    With `upstream_url` the proxies stand before that server, and no demo upstream is started.
    """
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        if upstream_url is None:
            port = free_port()
            upstream_url = f"http://127.0.0.1:{port}/v1"
            running.enter_context(
                process(
                    ["stream_aligner_proxy.demo.upstream", "--port", str(port)],
                    f"http://127.0.0.1:{port}/health",
                )
            )
        urls = {"upstream": upstream_url}
        for name, differs in proxies.items():
            own = free_port()
            upstream = {"name": "demo", "base_url": urls["upstream"]}
            config = {
                "upstreams": [{**upstream, "dialect": differs.get("dialect", "vllm")}],
                "aligner": differs.get(
                    "aligner", {"backend": "transformers", "path": str(MODELS / "aligner")}
                ),
                "alignment": {"mode": "stream", **differs.get("alignment", {})},
            }
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(config))
            running.enter_context(
                process(
                    [
                        "stream_aligner_proxy.cli",
                        "serve",
                        "--config",
                        str(path),
                        "--port",
                        str(own),
                    ],
                    f"http://127.0.0.1:{own}/readyz",
                )
            )
            urls[name] = f"http://127.0.0.1:{own}/v1"
        yield urls


@dataclass
class Reply:
    """One streamed reply as the client saw it. Times are seconds from sending the request."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    first_text: float = 0.0
    total: float = 0.0
    sentences: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)


def ask(
    client: httpx.Client, base_url: str, question: str, *, mode: str | None = None, **body: Any
) -> Reply:
    """Stream one reply. `mode` None speaks to a server that is not the proxy."""
    payload: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    if mode is not None:
        payload["stream_aligner"] = {"mode": mode, "provenance": True}
    reply = Reply()
    begun = time.perf_counter()
    with client.stream("POST", f"{base_url}/chat/completions", json=payload) as response:
        if response.status_code != 200:
            raise RuntimeError(response.read().decode())
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            _take(reply, json.loads(line[6:]), time.perf_counter() - begun)
    reply.total = time.perf_counter() - begun
    return reply


def _take(reply: Reply, chunk: dict[str, Any], now: float) -> None:
    if "error" in chunk:
        raise RuntimeError(chunk["error"]["message"])
    reply.usage = chunk.get("usage") or reply.usage
    extension = chunk.get("stream_aligner") or {}
    if "sentence" in extension:
        reply.sentences.append(extension["sentence"])
    reply.cost = extension.get("cost", reply.cost)
    for choice in chunk["choices"]:
        text = choice["delta"].get("content") or ""
        if text and not reply.text:
            reply.first_text = now
        reply.text += text
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason


def demo_model(base_url: str) -> str:
    """The name of the model that the demo upstream serves."""
    answer = httpx.get(f"{base_url}/models", timeout=10, trust_env=False).json()
    name: str = answer["data"][0]["id"]
    return name
