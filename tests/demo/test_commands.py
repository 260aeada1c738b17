"""The demo servers as commands: one line when ready, a clean end when told to stop."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.demo.tiny import build


@contextmanager
def command(module: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a module until it is ready; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"stream_aligner_proxy.demo.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: "), process.communicate(timeout=10)
        yield line.rpartition(" at ")[2].strip(), process
    finally:
        process.kill()
        process.communicate(timeout=10)


def ask(address: str) -> str:
    body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4}
    answer = httpx.post(f"{address}/chat/completions", json=body, trust_env=False, timeout=30)
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_the_scripted_upstream_runs_as_a_command_and_stops_quietly(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("rules: [{reply: Hello.}]")
    with command("scripted", "--script", str(script), "--port", "0") as (address, process):
        assert ask(address) == "Hello."
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (errors, process.returncode) == ("", 0)


def test_the_embedded_upstream_runs_as_a_command(tmp_path: Path) -> None:
    model = build(tmp_path)
    with command("upstream", "--model", str(model), "--port", "0") as (address, process):
        ask(address)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (errors, process.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("module", "arguments"), [("scripted", ["--script"]), ("upstream", ["--model"])]
)
def test_a_file_that_is_not_there_is_one_clear_line(
    module: str, arguments: list[str], tmp_path: Path
) -> None:
    where = str(tmp_path / "nowhere")
    run = subprocess.run(
        [sys.executable, "-m", f"stream_aligner_proxy.demo.{module}", *arguments, where],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "nowhere" in run.stderr
