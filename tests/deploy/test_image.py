"""The Dockerfile and the command that its health check runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from stream_aligner_proxy import __version__
from stream_aligner_proxy.cli import main
from tests.deploy.helm import ROOT
from tests.servers import serve_in_thread

DOCKERFILE = ROOT / "Dockerfile"


def instructions(target: str) -> list[str]:
    """Of one stage, a line each."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    (stage,) = [one for one in stages if one.splitlines()[0].endswith(f" AS {target}")]
    return [line for line in stage.splitlines()[1:] if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold=style", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    assert "hadolint ignore" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("target", ["gateway", "cuda"])
def test_an_image_runs_as_a_number_and_tells_its_health(target: str) -> None:
    lines = instructions(target)
    assert "USER 10001:10001" in lines
    assert 'ENTRYPOINT ["stream-aligner"]' in lines
    assert any(line.startswith("HEALTHCHECK") and "health" in line for line in lines)
    assert f"ARG VERSION={__version__}" in lines
    assert any("org.opencontainers.image.revision" in line for line in lines)
    # Nothing is written where the root is read-only.
    assert any("HOME=/tmp" in line and "PYTHONDONTWRITEBYTECODE=1" in line for line in lines)


def test_the_build_sees_what_the_wheel_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word.split("/")[0]
        for line in instructions("wheel") + instructions("installed")
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert let_in == copied
    for name in copied:
        assert (ROOT / name).exists()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1), (204, 1)])
def test_health_is_an_exit_code(status: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("", status_code=status)

    with serve_in_thread(Starlette(routes=[Route("/healthz", answer)])) as address:
        assert main(["health", "--url", f"{address}/healthz"]) == code
    said = capsys.readouterr().err
    assert said == ("" if code == 0 else f"stream-aligner: {address}/healthz answers {status}\n")


def test_health_says_that_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", "http://127.0.0.1:9/healthz"]) == 1
    assert "does not answer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["health", "--url", "file:///etc/hostname"])


def test_health_loads_no_server() -> None:
    code = (
        "import sys; from stream_aligner_proxy.cli import main;"
        "main(['health', '--url', 'http://127.0.0.1:9/healthz']);"
        "sys.exit(any(name in sys.modules for name in ('aiohttp', 'fastapi', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
