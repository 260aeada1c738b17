"""The composition root: settings in, an ASGI app out. Nothing else knows all the parts."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from stream_aligner_proxy import __version__
from stream_aligner_proxy.api import errors
from stream_aligner_proxy.api.aligning import AlignBody
from stream_aligner_proxy.api.completing import CompletionBody
from stream_aligner_proxy.api.directory import Directory
from stream_aligner_proxy.api.documenting import schemas
from stream_aligner_proxy.api.faces.messages_schemas import MessagesBody
from stream_aligner_proxy.api.faces.responses_schemas import ResponsesBody
from stream_aligner_proxy.api.faces.shapes import shape_of
from stream_aligner_proxy.api.messages_routes import messages_routes
from stream_aligner_proxy.api.page import page_route
from stream_aligner_proxy.api.plan import SCOPE_OF, Rules
from stream_aligner_proxy.api.request_id import RequestId
from stream_aligner_proxy.api.response_store import ResponseStore
from stream_aligner_proxy.api.responses_routes import responses_routes
from stream_aligner_proxy.api.routes import routes
from stream_aligner_proxy.api.schemas import ChatBody
from stream_aligner_proxy.api.service import Service, Treatment
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.core.watching import Observer
from stream_aligner_proxy.observers.guard import Guarded
from stream_aligner_proxy.observers.metrics import Metrics, UpstreamState
from stream_aligner_proxy.parts import (
    make_aligner,
    make_member,
    make_table,
    start_aligner,
    used_aligners,
)
from stream_aligner_proxy.settings import DEFAULT, AlignmentSettings, Settings
from stream_aligner_proxy.upstream.routing.member import Member

_log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    aligner: Aligner | None = None,
    observers: Sequence[Observer] = (),
    examples: Sequence[str] = (),
) -> FastAPI:
    """The proxy as an ASGI app. Raises `ConfigError`.

    `aligner` replaces the one configured as `aligner`. `examples` are the page's example questions.
    Start-up loads the aligners; what goes wrong there is a `ConfigError` from the lifespan.
    """
    made = [make_member(upstream) for upstream in settings.upstreams]
    members = [member for member, _ in made]
    table = make_table(settings, members)
    aligners = {
        name: aligner if name == DEFAULT and aligner is not None else make_aligner(section, name)
        for name, section in used_aligners(settings).items()
    }
    metrics = Metrics()
    metrics.watch(lambda: map(_state, members))
    service = Service(
        directory=Directory(
            members,
            table=table,
            declared={u.name: u.models for u in settings.upstreams if u.models is not None},
        ),
        table=table,
        treatments=make_treatments(settings, aligners),
        aligners=aligners,
        watcher=metrics,
        observer=Guarded((metrics, *observers), metrics.observer_failed),
        count_error=metrics.error,
        render_metrics=metrics.render,
        max_body_bytes=settings.server.max_body_bytes,
        max_choices=settings.server.max_choices,
        show_upstream=settings.server.show_upstream,
        examples=tuple(examples),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for member in members:
                stack.push_async_callback(member.aclose)
            for name, loaded in aligners.items():
                stack.push_async_callback(loaded.close)
                await start_aligner(loaded, name)
            check_treatments(settings, service.treatments)
            service.ready = True
            # Known models are routed without asking; an upstream that is down is asked again.
            await service.directory.refresh()
            for _, prober in made:
                stack.push_async_callback(prober.close)
                prober.start()
            _log.info(
                "ready: %d upstreams, %d routes, aligners: %s",
                len(members),
                len(settings.routes),
                ", ".join(loaded.name for loaded in aligners.values()),
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
    app.add_middleware(RequestId)
    app.include_router(routes(service))
    app.include_router(messages_routes(service))
    app.include_router(
        responses_routes(service, ResponseStore(settings.server.response_store_bytes))
    )
    if settings.server.page:
        app.include_router(page_route(service))
    errors.install(app, service, shape_of)
    _document_body(app)
    return app


def make_treatments(settings: Settings, aligners: Mapping[str, Aligner]) -> list[Treatment]:
    """One for each route, or a single one where there is none."""
    routes = [(route.alignment, route.aligner) for route in settings.routes] or [(None, None)]
    return [
        _treatment(own or settings.alignment, name or DEFAULT, aligners[name or DEFAULT])
        for own, name in routes
    ]


def check_treatments(settings: Settings, treatments: Sequence[Treatment]) -> None:
    """Raises `ConfigError` for what an aligner cannot do; they must have been started."""
    for number, treatment in enumerate(treatments):
        own = bool(settings.routes) and settings.routes[number].alignment is not None
        _check(treatment, f"routes[{number}].alignment" if own else "alignment")


def _treatment(alignment: AlignmentSettings, name: str, aligner: Aligner) -> Treatment:
    rules = Rules(
        alignment.mode,
        alignment.allow_override,
        alignment.provenance,
        alignment.structured_output == "pass",
        alignment.strength,
        alignment.logprobs == "unchanged",
    )
    return Treatment(name, aligner, rules, alignment.policy)


def _state(member: Member) -> UpstreamState:
    found = member.found()
    return UpstreamState(member.name, member.health.usable, str(found["way"]), str(found["class"]))


def _check(treatment: Treatment, where: str) -> None:
    """A route's own mode must be one its aligner can work in, its strength one it obeys."""
    mode, aligner = treatment.rules.mode, treatment.aligner
    least, most = aligner.strengths
    if not least <= treatment.rules.strength <= most:
        able = f"it obeys {least:g} to {most:g}" if least < most else f"it can only be {least:g}"
        raise ConfigError(
            f"{where}.strength: the aligner {aligner.name} cannot be dialled to "
            f"{treatment.rules.strength:g}: {able}"
        )
    if mode is not Mode.OFF and SCOPE_OF[mode] not in aligner.scopes:
        able = ", ".join(m for m in Mode if m is Mode.OFF or SCOPE_OF[m] in aligner.scopes)
        raise ConfigError(
            f"{where}.mode: the aligner {aligner.name} cannot work in mode {mode}; "
            f"it can in: {able}"
        )


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
