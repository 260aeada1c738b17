"""A configuration file as it is served: read, made into an app, and read again for a reload."""

import logging
import socket
from pathlib import Path

from fastapi import FastAPI

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.guarding import warn_if_open
from stream_aligner_proxy.operating.reloading import Reloader
from stream_aligner_proxy.operating.shared import Shared
from stream_aligner_proxy.parts import watched_paths
from stream_aligner_proxy.serving import run
from stream_aligner_proxy.settings import Settings, load, with_aligner
from stream_aligner_proxy.settings.server import FIXED

_log = logging.getLogger(__name__)


class Configured:
    """`aligner` is a checkpoint in place of the file's. Raises `ConfigError`."""

    def __init__(self, file: Path, aligner: Path | None = None) -> None:
        self._file = file
        self._aligner = aligner
        self._watched: list[Path] = []
        self.settings = self._load()

    def serve(self, listener: socket.socket, *, late: bool = False) -> None:
        """Until a signal comes; `late` as in `serving.run`. Raises `ConfigError`."""
        server = self.settings.server
        shared = Shared(server)
        warn_if_open(self.settings, listener.getsockname()[0])

        def make() -> FastAPI:
            """Of the file as it is now."""
            settings = self._load()
            for key in FIXED:
                if getattr(settings.server, key) != getattr(server, key):
                    _log.warning("server.%s has changed: that takes a restart", key)
            app = create_app(settings, shared=shared)
            self.settings = settings
            return app

        reloader = Reloader(make, lambda: self._watched, shared, server.watch_seconds)
        app = create_app(self.settings, shared=shared)
        run(app, listener, shared, reloader=reloader, late=late)

    def _load(self) -> Settings:
        settings = load(self._file)
        if self._aligner is not None:
            settings = with_aligner(settings, self._aligner)
        # Also where it cannot be loaded: its files may change, and then it can.
        self._watched = [self._file, *watched_paths(settings)]
        return settings
