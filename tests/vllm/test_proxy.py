"""The whole proxy with an aligner on vLLM: a streamed reply, and no process left on any way out."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stream_aligner_proxy.demo.launch import EXAMPLES, DemoUpstream
from tests.servers import refused_address
from tests.vllm.processes import Command, command, free_port
from tests.vllm.world import CPU, DEMO, all_gone, offspring

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def upstream() -> Iterator[DemoUpstream]:
    with DemoUpstream() as running:
        yield running


def configuration(folder: Path, base_url: str) -> Path:
    file = folder / "proxy.yaml"
    content = {
        "upstreams": [{"name": "demo", "base_url": base_url, "dialect": "vllm"}],
        "aligner": {"backend": "vllm", "path": str(DEMO), **CPU},
        "alignment": {"mode": "stream", "max_sentence_chars": 400},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def started(file: Path, port: int) -> tuple[str, ...]:
    return ("stream_aligner_proxy", "serve", "--config", str(file), "--port", str(port))


def streamed(base: str, model: str, question: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a streamed reply, and the history of its sentences."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_aligner": {"provenance": True},
    }
    text, sentences = "", []
    with httpx.stream("POST", f"{base}/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for chunk in map(json.loads, lines[:-1]):
        assert "error" not in chunk
        if sentence := chunk.get("stream_aligner", {}).get("sentence"):
            sentences.append(sentence)
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
    return text, sentences


def ended(running: Command, number: int) -> None:
    processes = offspring(running.pid)
    code = running.signalled(number)
    assert code == (0 if number == signal.SIGTERM else -number), running.said()
    assert all_gone(processes) == []


def test_a_streamed_reply_is_reviewed_and_sigterm_ends_every_process(
    upstream: DemoUpstream, tmp_path: Path
) -> None:
    port = free_port()
    with command(*started(configuration(tmp_path, upstream.base_url), port)) as running:
        running.answers(f"http://127.0.0.1:{port}/readyz")
        outcomes = set()
        for question in EXAMPLES:
            text, sentences = streamed(f"http://127.0.0.1:{port}/v1", upstream.model, question)
            assert text
            assert "".join(sentence["text"] for sentence in sentences) == text
            outcomes |= {sentence["verdict"] for sentence in sentences}
        assert "keep" in outcomes
        assert outcomes <= {"keep", "replace"}
        running.has_engine()
        ended(running, signal.SIGTERM)


def test_a_proxy_that_is_killed_leaves_no_engine(tmp_path: Path) -> None:
    port = free_port()
    file = configuration(tmp_path, refused_address())
    with command(*started(file, port)) as running:
        running.answers(f"http://127.0.0.1:{port}/healthz")
        running.has_engine()
        ended(running, signal.SIGKILL)


def test_a_proxy_told_to_end_while_its_engine_starts_leaves_no_process(tmp_path: Path) -> None:
    file = configuration(tmp_path, refused_address())
    with command(*started(file, free_port())) as running:
        running.has_engine()
        ended(running, signal.SIGTERM)
