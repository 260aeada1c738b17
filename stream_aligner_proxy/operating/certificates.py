"""The certificate that new connections are made with: read anew when told, or when a file changed.

The socket keeps the first context, and each handshake takes the newest one from it. So certificate,
key and client CA are taken over together or not at all, where a context that is loaded into again
may be left with a certificate and no key, and would keep what the CA file no longer holds.
"""

import asyncio
import logging
import ssl
from typing import Self

from stream_aligner_proxy.api.service import Loaded
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.operating.reloading import fingerprint
from stream_aligner_proxy.operating.shared import Shared
from stream_aligner_proxy.settings.server import TlsSettings, tls_context

_log = logging.getLogger(__name__)


class Certificates:
    """`context` is for the listening socket. Raises `ConfigError`."""

    def __init__(self, tls: TlsSettings, loaded: Loaded, metrics: Metrics) -> None:
        self._tls = tls
        self._loaded = loaded
        self._metrics = metrics
        self._known = self._tried = fingerprint(tls.files)
        self._newest = self.context = tls_context(tls)
        self.context.sni_callback = self._choose
        self._asked = asyncio.Event()

    @classmethod
    def of(cls, shared: Shared) -> Self | None:
        """Those of `shared`'s settings, where there are any."""
        tls = shared.server.tls
        return None if tls is None else cls(tls, shared.loaded, shared.metrics)

    def ask(self) -> None:
        """Read them soon; from the event loop."""
        self._asked.set()

    async def watch(self) -> None:
        """Look at the files again and again, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._tls.watch_seconds):
                    await self._asked.wait()
            except TimeoutError:
                await self.look(told=False)
            else:
                self._asked.clear()
                await self.look(told=True)

    async def look(self, *, told: bool) -> None:
        # Away from the loop: a volume of a network may let one wait.
        now = await asyncio.to_thread(fingerprint, self._tls.files)
        if now == self._known and not (told and self._loaded.certificate_error):
            return
        try:
            self._newest = await asyncio.to_thread(tls_context, self._tls)
        except ConfigError as error:
            # One file may be written already and the next one not yet: the next look will tell.
            if told or now == self._tried:
                self._known = now
                self._loaded.certificate_error = str(error)
                self._metrics.reloaded(ok=False)
                _log.error("the certificate stays as it was: %s", error)
            self._tried = now
        else:
            self._known = now
            self._loaded.certificate_error = None
            self._metrics.reloaded(ok=True)
            _log.info("read the certificate of server.tls anew")

    def _choose(self, connection: ssl.SSLObject, name: str | None, given: ssl.SSLContext) -> None:
        """Called in every handshake, also of clients that name no server."""
        connection.context = self._newest
