"""The composition root: settings in, an ASGI app out. Nothing else knows all the parts."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from stream_aligner_proxy import __version__
from stream_aligner_proxy.aligners import registry
from stream_aligner_proxy.api import errors
from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.api.page import page_route
from stream_aligner_proxy.api.plan import SCOPE_OF, Rules
from stream_aligner_proxy.api.request_id import RequestId
from stream_aligner_proxy.api.routes import body_schemas, routes
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.ports import Aligner, Observer
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import Metrics
from stream_aligner_proxy.settings import Settings, UpstreamSettings
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts

_log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    aligner: Aligner | None = None,
    observers: Sequence[Observer] = (),
    examples: Sequence[str] = (),
) -> FastAPI:
    """The proxy as an ASGI app. Raises `ConfigError`.

    `aligner` replaces the configured one. `examples` are the page's example questions.
    Start-up loads the aligner; what goes wrong there is a `ConfigError` from the lifespan.
    """
    upstreams = [_upstream(upstream, i) for i, upstream in enumerate(settings.upstreams)]
    metrics = Metrics()
    alignment = settings.alignment
    service = Service(
        directory=Directory(upstreams),
        aligner=aligner if aligner is not None else _aligner(settings),
        rules=Rules(
            alignment.mode,
            alignment.allow_override,
            alignment.provenance,
            alignment.structured_output == "pass",
            alignment.strength,
        ),
        policy=alignment.policy,
        observers=[Guarded(o, metrics.observer_failed) for o in (metrics, *observers)],
        count_error=metrics.error,
        render_metrics=metrics.render,
        max_body_bytes=settings.server.max_body_bytes,
        examples=tuple(examples),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for upstream in upstreams:
                stack.push_async_callback(upstream.aclose)
            stack.push_async_callback(service.aligner.close)
            await service.aligner.start()
            _check_aligner(service)
            service.ready = True
            # Known models are routed without asking; an upstream that is down is asked again.
            await service.directory.refresh()
            _log.info("ready: aligner %s, mode %s", service.aligner.name, alignment.mode)
            yield
            service.ready = False

    app = FastAPI(
        title="Stream Aligner Proxy",
        version=__version__,
        summary="OpenAI-compatible; corrects replies sentence by sentence while they are written.",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; the schema itself is at /openapi.json.
        redoc_url=None,
        docs_url=None,
        # A redirect would lead to whatever the Host header says, and lose the body.
        redirect_slashes=False,
    )
    app.add_middleware(RequestId)
    app.include_router(routes(service))
    if settings.server.page:
        app.include_router(page_route(service))
    errors.install(app, service)
    _document_body(app)
    return app


def _upstream(settings: UpstreamSettings, index: int) -> HttpUpstream:
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    return HttpUpstream(
        settings.name,
        settings.base_url,
        settings.dialect,
        api_key=key,
        timeouts=Timeouts(**settings.timeouts.model_dump()),
    )


def _aligner(settings: Settings) -> Aligner:
    return registry.create(settings.aligner.options())


def _check_aligner(service: Service) -> None:
    """The route's own mode must be one the aligner can work in, its strength one it obeys."""
    mode, aligner = service.rules.mode, service.aligner
    least, most = aligner.strengths
    if not least <= service.rules.strength <= most:
        able = f"it obeys {least:g} to {most:g}" if least < most else f"it can only be {least:g}"
        raise ConfigError(
            f"alignment.strength: the aligner {aligner.name} cannot be dialled to "
            f"{service.rules.strength:g}: {able}"
        )
    if mode is not Mode.OFF and SCOPE_OF[mode] not in aligner.scopes:
        able = ", ".join(m for m in Mode if m is Mode.OFF or SCOPE_OF[m] in aligner.scopes)
        raise ConfigError(
            f"alignment.mode: the aligner {aligner.name} cannot work in mode {mode}; "
            f"it can in: {able}"
        )


def _document_body(app: FastAPI) -> None:
    """Put the hand-parsed body into the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(body_schemas())
        return document

    app.openapi = openapi  # type: ignore[method-assign]
