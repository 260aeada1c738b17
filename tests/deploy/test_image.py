"""The Dockerfile and the command that its health check runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from stream_aligner_proxy import __version__
from stream_aligner_proxy.cli import main
from tests.deploy.helm import CHART, ROOT
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
    for label in ("version", "revision", "source"):
        assert any(f'image.{label}="${{{label.upper()}}}"' in line for line in lines)
        assert any(line.startswith(f"ARG {label.upper()}=") for line in lines)
    # Nothing is written where the root is read-only.
    assert any("HOME=/tmp" in line and "PYTHONDONTWRITEBYTECODE=1" in line for line in lines)


def test_the_build_sees_what_the_wheel_is_made_of_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for target in ("wheel", "installed", "cuda", "gateway")
        for line in instructions(target)
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert let_in == copied
    for name in copied:
        assert (ROOT / name).exists()


def test_base_images_have_a_tag_and_can_be_named_otherwise() -> None:
    text = DOCKERFILE.read_text()
    bases = set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE))
    assert bases == {"${PYTHON_IMAGE}", "${VLLM_IMAGE}"}
    for name in ("PYTHON_IMAGE", "VLLM_IMAGE"):
        assert re.search(rf"^ARG {name}=[a-z/-]+:[-.\w]+$", text, flags=re.MULTILINE)


def test_vllm_is_the_version_that_the_tests_know() -> None:
    version = re.search(r"VLLM_IMAGE=\S+:v(\S+)", DOCKERFILE.read_text())
    assert version is not None
    assert version[1] in (ROOT / "tests" / "vllm" / "install.py").read_text()
    assert f"tag: v{version[1]}\n" in (CHART / "values.yaml").read_text()
    assert f"vllm-openai:v{version[1]}" in (ROOT / "deploy/compose/compose.yaml").read_text()


def test_the_wheel_has_every_file_that_is_no_module() -> None:
    """What is read at run time lies beside the modules: models, the page, scripts."""
    listed = subprocess.run(
        ["git", "ls-files", "stream_aligner_proxy", "training"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = {
        str(path.relative_to(ROOT))
        for package, patterns in globs["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    beside = {path for path in listed.stdout.splitlines() if not path.endswith((".py", ".md"))}
    assert beside - packed == set()


def test_what_a_base_image_has_keeps_its_version(tmp_path: Path) -> None:
    there = "torch==2.13.0+cu130\nHttpx_2==2.0\naiohttp==3.13.0\nlocal @ file:///wheel\n"
    ours = tmp_path / "constraints.txt"
    ours.write_text("# pinned\naiohttp==3.14.5\nhttpx-2==2.16.2\nh2==4.4.1\n")
    made = subprocess.run(
        ["awk", "-f", ROOT / "deploy" / "constraints-beside.awk", "-", ours],
        input=there,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    kept = ["torch==2.13.0+cu130", "Httpx_2==2.0", "aiohttp==3.13.0", "h2==4.4.1"]
    assert made.stdout.splitlines() == kept


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
    assert "does not answer (Connection refused)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["health", "--url", "file:///etc/hostname"])


def test_health_shows_a_key_from_a_file_and_tells_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        known = request.headers.get("authorization") == "Bearer sk-right"
        return PlainTextResponse("", status_code=200 if known else 401)

    key = tmp_path / "key"
    with serve_in_thread(Starlette(routes=[Route("/v1/models", answer)])) as address:
        asking = ["health", "--url", f"{address}/v1/models", "--key-file", str(key)]
        assert main(asking) == 2  # there is no such file
        key.write_text("sk-right\n")
        assert main(asking) == 0
        key.write_text("sk-wrong\n")
        assert main(asking) == 1
    said = capsys.readouterr().err
    assert "--key-file" in said
    assert "answers 401" in said
    assert "sk-" not in said


def test_health_loads_no_server() -> None:
    code = (
        "import sys; from stream_aligner_proxy.cli import main;"
        "main(['health', '--url', 'http://127.0.0.1:9/healthz']);"
        "sys.exit(any(name in sys.modules for name in ('aiohttp', 'fastapi', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
