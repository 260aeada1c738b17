"""The command line, as a process."""

import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from stream_aligner_proxy import __version__
from stream_aligner_proxy.cli import main
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.servers import serve_in_thread

COMMAND = [sys.executable, "-m", "stream_aligner_proxy.cli"]
MODELS = Path(__file__).parents[1] / "stream_aligner_proxy" / "demo" / "models"
needs_models = pytest.mark.skipif(
    not (MODELS / "aligner").is_dir() or not (MODELS / "upstream").is_dir(),
    reason="the demo models have not been built",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text("- {find: utilise, replace: use}\n")
    file = tmp_path / "proxy.yaml"
    file.write_text(
        'upstreams: [{name: main, base_url: "http://127.0.0.1:9/v1", dialect: vllm}]\n'
        "aligner: {backend: rules, path: rules.yaml}\n"
        "alignment: {mode: stream}\n"
    )
    return file


def test_the_version() -> None:
    assert run("--version").stdout == f"stream-aligner {__version__}\n"


def test_help_shows_how_to_begin() -> None:
    shown = run("--help").stdout
    for word in ("stream-aligner demo", "serve --config", "upstreams:", "STREAM_ALIGNER_"):
        assert word in shown


def check_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("stream-aligner: ")
    for word in words:
        assert word in result.stderr


def test_a_wrong_configuration_is_one_line_and_code_2(config: Path) -> None:
    config.write_text(config.read_text().replace("mode: stream", "mode: loud"))
    check_one_line(run("serve", "--config", str(config)), "alignment.mode", "shadow")


def test_what_is_found_wrong_only_while_starting_is_one_line_too(config: Path) -> None:
    (config.parent / "rules.yaml").write_text("- {find: '(', replace: x}\n")
    result = run("serve", "--config", str(config), "--port", "0")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("stream-aligner: ")


def test_a_taken_port_is_told(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_one_line(run("serve", "--config", str(config), "--port", port), port, "--port")


@pytest.mark.parametrize("port", ["x", "-1", "70000"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["serve", "--config", "x", f"--port={port}"])
    assert raised.value.code == 2
    assert "is not a port" in capsys.readouterr().err


@contextmanager
def running(*arguments: str, until: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, when it has printed a line with `until`; gives what follows that word."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def pump() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=pump, daemon=True)
    reader.start()
    try:
        seen = ""
        while until not in seen:
            seen += lines.get(timeout=60)
        yield process, seen.split(until)[1].split()[0]
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_and_ends_on_a_signal(config: Path, sign: signal.Signals) -> None:
    with serve_in_thread(ScriptedUpstream(Script((Rule("We utilise it. Done."),)))) as upstream:
        config.write_text(config.read_text().replace("http://127.0.0.1:9/", f"{upstream}/"))
        arguments = ("serve", "--config", str(config), "--port", "0")
        with running(*arguments, until="listening on") as (process, address):
            body = {"model": "scripted", "messages": [{"role": "user", "content": "a"}]}
            reply = httpx.post(f"{address}/v1/chat/completions", json=body).json()
            process.send_signal(sign)
            code = process.wait(10)
    assert reply["choices"][0]["message"]["content"] == "We use it. Done."
    assert code == (0 if sign == signal.SIGTERM else 130)


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process has ended, waiting for it as long as `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


@needs_models
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_demo_answers_and_leaves_no_process_behind(sign: signal.Signals) -> None:
    with running("demo", "--port", "0", until="API ") as (process, address):
        child = child_of(process.pid)
        model = httpx.get(f"{address}/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
        reply = httpx.post(f"{address}/chat/completions", json=body, timeout=60)
        process.send_signal(sign)
        process.wait(15)
        assert gone(child)
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"]


def test_without_models_the_demo_says_how_to_build_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stream_aligner_proxy.demo import launch

    monkeypatch.setattr(launch.DemoUpstream.__init__, "__defaults__", (tmp_path, 1.0))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["demo", "--port", "0"]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "make demo-models" in capsys.readouterr().err


def test_serve_needs_a_file_or_an_aligner() -> None:
    check_one_line(run("serve"), "--config", "--aligner")


def test_an_aligner_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    check_one_line(run("serve", "--aligner", str(tmp_path / "none")), "--aligner", "directory")


def test_an_aligner_takes_the_place_of_the_one_in_the_file(config: Path, tmp_path: Path) -> None:
    from stream_aligner_proxy.settings import load, with_aligner

    settings = with_aligner(load(config), tmp_path)
    assert (settings.aligner.backend, settings.aligner.path) == ("transformers", tmp_path)
    assert settings.upstreams == load(config).upstreams
    text = config.read_text().replace(
        "{backend: rules, path: rules.yaml}",
        "{backend: vllm, path: ., profile: compact, draft: ngram}",
    )
    config.write_text(text)
    aligner = with_aligner(load(config), tmp_path).aligner
    assert (aligner.backend, aligner.path, aligner.profile) == ("vllm", tmp_path, None)
    assert aligner.draft == "ngram"


@needs_models
@pytest.mark.slow
def test_an_aligner_alone_is_served_before_the_demos_upstream() -> None:
    arguments = ("serve", "--aligner", str(MODELS / "aligner"), "--port", "0")
    with running(*arguments, until="API ") as (_, address):
        model = httpx.get(f"{address}/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
        reply = httpx.post(f"{address}/chat/completions", json=body, timeout=60)
    assert reply.json()["choices"][0]["message"]["content"]
