"""Real HTTP servers for tests, on ports of their own choosing, closed without a trace."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trustme
import uvicorn
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config


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


@asynccontextmanager
async def serve_tls(
    app: Any, authority: trustme.CA, folder: Path, *, alpn: tuple[str, ...] = ("h2", "http/1.1")
) -> AsyncIterator[str]:
    """Serve `app` over TLS by hypercorn, which has HTTP/2; gives its API's base address.

    `folder` gets the certificates: `ca.pem` is the one to trust.
    """
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(folder / "chain.pem", append=part > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    port = int(refused_address().rpartition(":")[2])
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile, config.keyfile = str(folder / "chain.pem"), str(folder / "key.pem")
    config.alpn_protocols = list(alpn)
    config.loglevel = "CRITICAL"
    config.graceful_timeout = 0.2
    stop = asyncio.Event()
    task = asyncio.create_task(hypercorn_serve(app, config, shutdown_trigger=stop.wait))
    try:
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield f"https://127.0.0.1:{port}/v1"
    finally:
        stop.set()
        await task
