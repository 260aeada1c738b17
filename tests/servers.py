"""Real HTTP servers for tests, on ports of their own choosing, closed without a trace."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """Tells when it is ready, leaves signals to the test runner, and stops at once when it is told:
    uvicorn itself looks every tenth of a second, which a thousand tests wait for."""

    def __init__(self, app: Any, http: Any = "auto") -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http,
                log_level="error",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=2,
            )
        )
        self.ready = threading.Event()
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._told.set)

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _listen() -> tuple[socket.socket, str]:
    """A listening socket, so that no connection is refused before the server accepts."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serve(app: Any, http: Any = "auto") -> AsyncIterator[str]:
    """Serve `app` in the running loop; gives its address, without a trailing slash. `http`: the
    class of its connections."""
    listener, address = _listen()
    server = Server(app, http)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield address
    finally:
        server.stop()
        await task
        listener.close()


@contextmanager
def serve_in_thread(app: Any) -> Iterator[str]:
    """Serve `app` in a thread with its own loop, for blocking clients; gives its address."""
    listener, address = _listen()
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert server.ready.wait(10), "the server did not start"
        yield address
    finally:
        server.stop()
        thread.join(10)
        listener.close()


def refused_address() -> str:
    """An address where nothing listens."""
    listener, address = _listen()
    listener.close()
    return address
