"""Run a demo server in the foreground and say, on one line, when it is ready."""

import socket
import sys
from contextlib import suppress
from typing import Any

import uvicorn


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(self._line + "\n")
        sys.stdout.flush()


def run(app: Any, host: str, port: int, what: str) -> None:
    """Serve `app` until interrupted; port 0 picks a free one. The line is `ready: WHAT at URL`."""
    listener = socket.create_server((host, port))
    address = f"http://{host}:{listener.getsockname()[1]}/v1"
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=2
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after its clean shutdown
        _Announcing(config, f"ready: {what} at {address}").run(sockets=[listener])
