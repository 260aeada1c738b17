"""Running the app under uvicorn, so that start-up errors are ours to tell and shutdown is orderly.

The socket is served from the start: while models load, health says so and requests are told to come
again. On SIGTERM or Ctrl+C: readiness goes off first; for `drain_seconds` requests are still taken,
since load balancers hear of it late; then new ones are told to come again and open replies have
`shutdown_seconds` to end; the rest are cancelled (each ends validly); the parts are closed.
SIGHUP reloads.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType

try:
    import resource
except ImportError:  # there is none on Windows
    resource = None  # type: ignore[assignment]

import uvicorn
from fastapi import FastAPI

from stream_aligner_proxy.api.admission import Admission
from stream_aligner_proxy.operating.certificates import Certificates
from stream_aligner_proxy.operating.connection import HeadLimits, connections
from stream_aligner_proxy.operating.generations import Generations
from stream_aligner_proxy.operating.reloading import Reloader
from stream_aligner_proxy.operating.shared import Shared
from stream_aligner_proxy.settings import ServerSettings

_log = logging.getLogger(__name__)
# All addresses of a machine, and the one by which it reaches itself.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """Drains before it stops."""

    def __init__(
        self, config: uvicorn.Config, admission: Admission, drain: float, shutdown: float
    ) -> None:
        super().__init__(config)
        self._admission = admission
        self._drain_seconds = drain
        self._shutdown_seconds = shutdown
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self.told: int | None = None  # the signal that stopped it
        self.may_accept = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.may_accept.wait()
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's it does not raise them again: they would end the loop here and now, and
        not the parts that it still has to close."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._admission.leaving:  # told twice: at once
            super().handle_exit(sig, frame)
            super().handle_exit(signal.SIGINT, frame)
            return
        self._admission.leaving = True
        self.told = sig
        # Whoever presses Ctrl+C has no load balancer to wait for.
        wait = self._drain_seconds if sig == signal.SIGTERM else 0.0
        self._loop.call_soon_threadsafe(self._begin_to_drain, wait)

    def _begin_to_drain(self, wait: float) -> None:
        self._draining = self._loop.create_task(self._drain(wait))

    async def _drain(self, wait: float) -> None:
        admission = self._admission
        if wait:
            _log.info("told to stop: not ready any more, and taking requests for %g s yet", wait)
            await asyncio.sleep(wait)
        admission.draining = True
        _log.info("draining: %d requests are open", admission.open)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._shutdown_seconds):
                await admission.idle.wait()
        if admission.open:
            _log.warning(
                "server.shutdown_seconds are over: %d requests are cut off", admission.open
            )
        self.should_exit = True
        self.may_accept.set()


def address(listener: socket.socket, *, tls: bool = False) -> str:
    """Where a client on this machine reaches `listener`."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    local = _ANY.get(host, host)
    return f"{scheme}://[{local}]:{port}" if ":" in local else f"{scheme}://{local}:{port}"


def run(
    app: FastAPI,
    listener: socket.socket,
    shared: Shared,
    *,
    started: Callable[[], None] | None = None,
    reloader: Reloader | None = None,
    late: bool = False,
) -> None:
    """Serve `app` on `listener` until a signal comes. Raises what the app's start-up raises.

    `started` is called when it is ready. With a `reloader` other apps follow. `late`: take
    connections only when the models are loaded, since other workers have loaded theirs.
    """

    def announce() -> None:
        where = address(listener, tls=shared.server.tls is not None)
        host = listener.getsockname()[0]
        reach = " and every other address of this machine" if host in _ANY else ""
        _log.info("listening on %s%s in process %d", where, reach, os.getpid())
        if started is not None:
            started()

    allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        told = runner.run(_serve(app, listener, shared, announce, reloader, late=late))
    _log.info("stopped")
    if told is not None:
        signal.raise_signal(told)  # now for whoever has called this


def allow_many_files() -> None:
    """A reply holds a connection on each side, and where it is being continued one more: the usual
    soft limit of 1024 files ends at a few hundred. It is low for the sake of `select` alone."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems have a limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: a chunk costs about a quarter less (bench/RESULTS.md)."""
    try:
        uvloop = import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _config(
    app: Generations, settings: ServerSettings, certificates: Certificates | None
) -> uvicorn.Config:
    level = settings.log_level
    return uvicorn.Config(
        app,
        http=connections(HeadLimits.of(settings)),
        ws="none",
        timeout_keep_alive=settings.keep_alive_seconds,
        # By default uvicorn believes whoever is on this machine.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_context_factory=None if certificates is None else lambda *_: certificates.context,
        lifespan="off",
        log_config=None,
        log_level=level if level in ("debug", "error") else "warning",
        access_log=False,
        server_header=False,
        # By then they have had their time.
        timeout_graceful_shutdown=1,
    )


async def _serve(
    app: FastAPI,
    listener: socket.socket,
    shared: Shared,
    started: Callable[[], None],
    reloader: Reloader | None,
    *,
    late: bool,
) -> int | None:
    """The signal that ended it."""
    settings = shared.server
    generations = Generations(app)
    certificates = Certificates.of(shared)
    server = _Server(
        _config(generations, settings, certificates),
        shared.admission,
        settings.drain_seconds,
        settings.shutdown_seconds,
    )
    if not late:
        server.may_accept.set()
    if reloader is not None:  # heard from the beginning: the signal would end the process

        def reload() -> None:
            reloader.ask()
            if certificates is not None:
                certificates.ask()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    failed: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(server.serve(sockets=[listener]))
        loading = tasks.create_task(_start(generations, tasks))
        renewing = None if certificates is None else tasks.create_task(certificates.watch())
        await asyncio.wait((served, loading), return_when=asyncio.FIRST_COMPLETED)
        reloading = None
        if not loading.done():
            loading.cancel()  # told to stop before it was ready
        elif failed := loading.result():
            server.should_exit = True
        else:
            if reloader is not None:
                reloading = tasks.create_task(reloader.run(generations))
            started()
        server.may_accept.set()
        await asyncio.wait((served,))
        for task in (reloading, renewing):
            if task is not None:
                task.cancel()
        generations.end()
    if failed is not None:
        raise failed
    return server.told


async def _start(generations: Generations, tasks: asyncio.TaskGroup) -> Exception | None:
    """What went wrong: raised here, it would come out of the group in another shape."""
    try:
        await generations.start(tasks)
    except Exception as error:  # noqa: BLE001 - raised again by `_serve`
        return error
    return None
