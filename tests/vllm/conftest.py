"""These tests need vLLM, which is in `.venv-vllm` only (`make vllm`): elsewhere there are none."""

from importlib.util import find_spec

import pytest

VLLM = find_spec("vllm") is not None

if not VLLM:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, but not those of libraries about each other."""
    if VLLM:
        for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
            config.addinivalue_line("filterwarnings", rf"ignore::{kind}:(torch|vllm)\b.*")
        config.addinivalue_line("filterwarnings", "ignore:[Uu]nclosed .*zmq:ResourceWarning")


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    """One event loop for a module: an engine belongs to the loop that it was started in."""
    return "asyncio"
