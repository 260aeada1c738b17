"""Fixtures that every test may use."""

import signal

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests (`@pytest.mark.anyio`) run on asyncio, as the proxy does."""
    return "asyncio"


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them ignore Ctrl+C, and all commands
    they start with them; what those do about it is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
