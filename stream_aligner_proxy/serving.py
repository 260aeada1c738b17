"""Running the app under uvicorn, so that start-up errors are ours to tell and shutdown is orderly.

The app's lifespan runs here, around the server: uvicorn would turn a `ConfigError` into a
traceback. Order on the way out: stop accepting, let open replies finish for a while, cancel the
rest (each ends validly), close the aligner and the upstreams.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from importlib import import_module

import uvicorn
from fastapi import FastAPI

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()


def address(listener: socket.socket) -> str:
    """Where a client on this machine reaches `listener`."""
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def run(
    app: FastAPI,
    listener: socket.socket,
    shutdown_seconds: int,
    log_level: str,
    *,
    started: Callable[[], None] | None = None,
) -> None:
    """Serve `app` on `listener` until a signal comes. Raises what the app's start-up raises."""

    def announce() -> None:
        _log.info("listening on %s", address(listener))
        if started is not None:
            started()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, listener, shutdown_seconds, log_level, announce))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: a chunk costs about a quarter less (bench/RESULTS.md)."""
    try:
        uvloop = import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(
    app: FastAPI,
    listener: socket.socket,
    shutdown_seconds: int,
    log_level: str,
    started: Callable[[], None],
) -> None:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level=log_level if log_level in ("debug", "error") else "warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    async with app.router.lifespan_context(app):
        await _Server(config, started).serve(sockets=[listener])
