"""Real HTTP servers for tests, on ports of their own choosing, closed without a trace."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """Tells when it is ready, and leaves signals to the test runner."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_level="error", access_log=False, ws="none", timeout_graceful_shutdown=2
            )
        )
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _listen() -> tuple[socket.socket, str]:
    """A listening socket, so that no connection is refused before the server accepts."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """Serve `app` in the running loop; gives its address, without a trailing slash."""
    listener, address = _listen()
    server = _Server(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield address
    finally:
        server.should_exit = True
        await task
        listener.close()


@contextmanager
def serve_in_thread(app: Any) -> Iterator[str]:
    """Serve `app` in a thread with its own loop, for blocking clients; gives its address."""
    listener, address = _listen()
    server = _Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert server.ready.wait(10), "the server did not start"
        yield address
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def refused_address() -> str:
    """An address where nothing listens."""
    listener, address = _listen()
    listener.close()
    return address
