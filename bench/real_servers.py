"""Real inference servers with the demo's upstream model, each a process on this machine."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import httpx

from bench.stack import MODELS, ROOT, free_port, process, program
from stream_aligner_proxy import __version__

MODEL = MODELS / "upstream"
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Running:
    """`address` is without `/v1`; `model` is the name it answers to."""

    address: str
    model: str
    version: str


@dataclass(frozen=True, slots=True)
class Server:
    """`missing` says why it cannot run here; "" where it can."""

    name: str
    missing: str
    run: Callable[[], AbstractContextManager[Running]]


@contextmanager
def _demo() -> Iterator[Running]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # fmt: off
    arguments = [
        "stream_aligner_proxy.demo.upstream", "--port", str(port), "--name", "writer",
        "--model", str(MODEL),
    ]
    # fmt: on
    with process(arguments, f"{address}/health"):
        yield Running(address, "writer", __version__)


@contextmanager
def _transformers() -> Iterator[Running]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # fmt: off
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL),
        "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32",
    ]
    # fmt: on
    with program(command, f"{address}/health", more=_OFFLINE):
        yield Running(address, str(MODEL), version("transformers"))


@contextmanager
def _llamacpp() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "writer.gguf"
        subprocess.run([sys.executable, "-m", "bench.gguf_model", str(file)], cwd=ROOT, check=True)
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        # fmt: off
        arguments = [
            "bench.llamacpp_server", str(file), "--alias", "writer", "--port", str(port),
        ]
        # fmt: on
        with process(arguments, f"{address}/health"):
            # The last part is llama.cpp's build, which the server itself does not know.
            build = version("xllamacpp").rpartition(".")[2]
            yield Running(address, "writer", f"b{build}")


@contextmanager
def _vllm() -> Iterator[Running]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # fmt: off
    command = [
        str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port),
        "--model", str(MODEL), "--served-model-name", "writer",
        "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
    ]
    # fmt: on
    more = {
        **_OFFLINE,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }
    with program(command, f"{address}/health", 300, more):
        told = httpx.get(f"{address}/version", trust_env=False).json()
        yield Running(address, "writer", str(told["version"]))


def servers() -> dict[str, Server]:
    """All of them, also those that cannot run here."""
    here = (
        Server("demo", "", _demo),
        Server(
            "transformers",
            ""
            if find_spec("accelerate") and find_spec("openai")
            else "transformers[serving] is missing",
            _transformers,
        ),
        Server(
            "llamacpp",
            "" if find_spec("xllamacpp") and find_spec("gguf") else "there is no xllamacpp here",
            _llamacpp,
        ),
        Server(
            "vllm",
            "" if VLLM_PYTHON.exists() else "no .venv-vllm; `make vllm` makes it",
            _vllm,
        ),
    )
    return {server.name: server for server in here}
