"""The composition root: settings in, an ASGI app out. Nothing else knows all the parts."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from stream_aligner_proxy import __version__
from stream_aligner_proxy.aligners.beside import Shadowed
from stream_aligner_proxy.api import errors
from stream_aligner_proxy.api.access_log import AccessLog
from stream_aligner_proxy.api.admission import Limits
from stream_aligner_proxy.api.aligning import AlignBody
from stream_aligner_proxy.api.completing import CompletionBody
from stream_aligner_proxy.api.debug import debug_route
from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.api.documenting import schemas
from stream_aligner_proxy.api.faces.messages_schemas import MessagesBody
from stream_aligner_proxy.api.faces.responses_schemas import ResponsesBody
from stream_aligner_proxy.api.faces.shapes import shape_of
from stream_aligner_proxy.api.gate import Gate
from stream_aligner_proxy.api.messages_routes import messages_routes
from stream_aligner_proxy.api.page import page_route
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.request_id import RequestId
from stream_aligner_proxy.api.responses_routes import responses_routes
from stream_aligner_proxy.api.routes import routes
from stream_aligner_proxy.api.schemas import ChatBody
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.ports import Aligner, Queueing
from stream_aligner_proxy.core.watching import Observer
from stream_aligner_proxy.guarding import Guarding
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import UpstreamState
from stream_aligner_proxy.observing import take_observers
from stream_aligner_proxy.operating.pool import Use
from stream_aligner_proxy.operating.reloading import fingerprint
from stream_aligner_proxy.operating.shared import ProbedUpstream, Shared
from stream_aligner_proxy.parts import (
    NamedAligner,
    behind_breaker,
    checkpoint_paths,
    make_aligner,
    make_member,
    make_table,
    used_aligners,
)
from stream_aligner_proxy.settings import (
    DEFAULT,
    AlignerSettings,
    Settings,
    UpstreamSettings,
)
from stream_aligner_proxy.treatments import check_treatments, make_treatments
from stream_aligner_proxy.upstream.routing.member import Member

_log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    aligner: Aligner | None = None,
    observers: Sequence[Observer] = (),
    examples: Sequence[str] = (),
    shared: Shared | None = None,
) -> FastAPI:
    """The proxy as an ASGI app. Raises `ConfigError`.

    `aligner` replaces the one configured as `aligner`. `examples` are the page's example questions.
    `shared` is what the apps of one process have in common: a reload makes a new app. Start-up
    loads the aligners; what goes wrong there is a `ConfigError` from the lifespan.
    """
    shared = shared or Shared(settings.server)
    metrics = shared.metrics
    guarding = Guarding(settings, shared)
    try:
        upstreams, loaded = _take_parts(settings, shared, aligner)
    except ConfigError:
        guarding.drop()
        raise
    try:
        watching = take_observers(
            settings, shared.observers, shared.audit_counts, metrics.spans_dropped
        )
    except ConfigError:
        guarding.drop()
        _drop(upstreams, loaded)
        raise
    own = [use.part for use in watching]
    members = [use.part.member for use in upstreams]
    table = make_table(settings, members)
    aligners = {use.part.name: use.part.aligner for use in loaded}
    breakers = {use.part.name: use.part.breaker for use in loaded}
    backends = {name: one.backend for name, one in used_aligners(settings).items()}
    if aligner is not None:
        backends[DEFAULT] = aligner.name
    server = settings.server
    service = Service(
        directory=Directory(
            members,
            table=table,
            declared={u.name: u.models for u in settings.upstreams if u.models is not None},
        ),
        table=table,
        treatments=make_treatments(settings, breakers, shared.comparisons),
        aligners=aligners,
        breakers=breakers,
        backends=backends,
        watcher=metrics,
        observer=Guarded(
            (metrics, shared.replies, guarding.spending, *own, *observers),
            metrics.observer_failed,
        ),
        count_error=shared.count_error,
        render_metrics=metrics.render,
        max_body_bytes=server.max_body_bytes,
        max_choices=server.max_choices,
        max_messages=server.max_messages,
        patience=Patience(server.reply_seconds, server.client_seconds),
        show_upstream=server.show_upstream,
        examples=tuple(examples),
        admission=shared.admission,
        loaded=shared.loaded,
        access=guarding.report,
        sign_in=guarding.sign_in,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for observer in watching:
                stack.push_async_callback(observer.release)
            for upstream in upstreams:
                stack.push_async_callback(upstream.release)
            for one in loaded:
                stack.push_async_callback(one.release)
            await stack.enter_async_context(guarding.running())
            for one in loaded:
                await one.start()
                if isinstance(one.part.aligner, Queueing):
                    one.part.aligner.queue.waited = metrics.waited(one.part.name)
            for treatment in service.treatments:
                if isinstance(treatment.aligner, Shadowed):
                    stack.push_async_callback(treatment.aligner.close)
            check_treatments(settings, service.treatments)
            # Known models are routed without asking; an upstream that is down is asked again.
            await service.directory.refresh()
            for upstream in upstreams:
                await upstream.start()
            await _probed([use.part for use in upstreams], server.warm_up_seconds)
            metrics.watch(
                lambda: map(_state, members),
                ready=lambda: service.reviews() and not service.admission.leaving,
                queues=partial(_count_queues, aligners),
            )
            await stack.enter_async_context(shared.lag.sampled(metrics.lagged, metrics.refresh))
            service.ready = True
            metrics.refresh()  # other workers show it from now on
            _log.info(
                "ready: upstreams %s; routes %d; aligners %s",
                ", ".join(member.name for member in members),
                len(settings.routes),
                ", ".join(f"{name} ({backends[name]})" for name in aligners),
            )
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
    # The last one added is the first that a request meets.
    guarding.limit(app)
    app.add_middleware(
        Gate,
        admission=shared.admission,
        limits=Limits(server.max_open, server.max_held_bytes, server.shed_above_mib),
        ready=lambda: service.ready,
        shape_of=shape_of,
        count_error=shared.count_error,
    )
    guarding.guard(app)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestId)
    app.include_router(routes(service))
    app.include_router(messages_routes(service))
    app.include_router(responses_routes(service, shared.responses))
    if server.page:
        app.include_router(page_route(service))
    if server.debug:
        app.include_router(debug_route(service, shared.replies, shared.lag, settings.model_dump))
    errors.install(app, service, shape_of)
    _document_body(app)
    return app


def _take_parts(
    settings: Settings, shared: Shared, given: Aligner | None
) -> tuple[list[Use[ProbedUpstream]], list[Use[NamedAligner]]]:
    """Those that are there already, and new ones. Raises `ConfigError`, and holds nothing then."""
    upstreams: list[Use[ProbedUpstream]] = []
    aligners: list[Use[NamedAligner]] = []
    try:
        for upstream in settings.upstreams:
            make = partial(_make_upstream, upstream, shared)
            upstreams.append(shared.upstreams.take(_upstream_key(upstream), make))
        for name, section in used_aligners(settings).items():
            if given is not None and name == DEFAULT:
                make_given = partial(_behind_breaker, DEFAULT, given, section, shared)
                aligners.append(shared.aligners.take((given, section.breaker), make_given))
                continue
            key = (name, section, fingerprint(checkpoint_paths(section)))
            aligners.append(
                shared.aligners.take(key, partial(_make_aligner, section, name, shared))
            )
    except ConfigError:
        _drop(upstreams, aligners)
        raise
    return upstreams, aligners


def _drop(upstreams: Sequence[Use[ProbedUpstream]], aligners: Sequence[Use[NamedAligner]]) -> None:
    for upstream in upstreams:
        upstream.drop()
    for aligner in aligners:
        aligner.drop()


def _make_upstream(settings: UpstreamSettings, shared: Shared) -> ProbedUpstream:
    return ProbedUpstream(*make_member(settings, shared.breakers.of("upstream", settings.name)))


def _make_aligner(settings: AlignerSettings, name: str, shared: Shared) -> NamedAligner:
    return _behind_breaker(name, make_aligner(settings, name), settings, shared)


def _behind_breaker(
    name: str, aligner: Aligner, settings: AlignerSettings, shared: Shared
) -> NamedAligner:
    return behind_breaker(name, aligner, settings.breaker, shared.breakers.of("aligner", name))


def _upstream_key(settings: UpstreamSettings) -> object:
    """A tokenizer or a certificate that was exchanged makes another upstream of it."""
    return settings, fingerprint(filter(None, (settings.tokenizer, settings.ca_file)))


async def _probed(upstreams: Sequence[ProbedUpstream], seconds: float) -> None:
    """Wait until all have been asked how they continue, or for so long."""
    tried = [asyncio.ensure_future(upstream.prober.tried.wait()) for upstream in upstreams]
    _, waiting = await asyncio.wait(tried, timeout=seconds)
    for task in waiting:
        task.cancel()


def _count_queues(aligners: Mapping[str, Aligner]) -> list[tuple[str, int]]:
    """How many reviews wait for each aligner that has a queue."""
    return [
        (name, aligner.queue.waiting)
        for name, aligner in aligners.items()
        if isinstance(aligner, Queueing)
    ]


def _state(member: Member) -> UpstreamState:
    found = member.found()
    return UpstreamState(member.name, member.health.usable, str(found["way"]), str(found["class"]))


def _document_body(app: FastAPI) -> None:
    """Put the hand-parsed body into the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(
            schemas(ChatBody, CompletionBody, AlignBody, MessagesBody, ResponsesBody)
        )
        return document

    app.openapi = openapi  # type: ignore[method-assign]
