"""The routes: read the request, decide, hand over to the response."""

from collections.abc import Mapping

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.aligning import align_route
from stream_aligner_proxy.api.completing import completions_route
from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.chat import CHAT
from stream_aligner_proxy.api.forwarding import forwarding_routes
from stream_aligner_proxy.api.reading import forwarded, grant_of, read_body
from stream_aligner_proxy.api.replying import reply
from stream_aligner_proxy.api.schemas import ChatBody, parse
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.api.status import report
from stream_aligner_proxy.core.errors import ModelNotFound


def routes(service: Service) -> APIRouter:
    """All routes over one service."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        summary="Create a chat completion",
        tags=["chat"],
        openapi_extra=json_body(ChatBody),
    )
    async def chat_completions(request: Request) -> Response:
        raw, body = parse(await read_body(request, service.max_body_bytes))
        return await reply(service, request, raw, body, CHAT, relayed=True)

    router.include_router(completions_route(service))
    router.include_router(align_route(service))
    router.include_router(forwarding_routes(service))

    @router.head("/v1/models", include_in_schema=False)
    @router.get("/v1/models", summary="List the models of all upstreams", tags=["models"])
    async def list_models(request: Request) -> Response:
        models = await service.directory.models(forwarded(request))
        if (grant := grant_of(request)) is not None:
            models = [model for model in models if grant.may_use(str(model["id"]))]
        return _json({"object": "list", "data": models})

    @router.head("/v1/models/{model:path}", include_in_schema=False)
    @router.get("/v1/models/{model:path}", summary="One model", tags=["models"])
    async def get_model(request: Request, model: str) -> Response:
        if (grant := grant_of(request)) is not None:
            grant.check_model(model)
        for known in await service.directory.models(forwarded(request)):
            if known["id"] == model:
                return _json(known)
        raise ModelNotFound(f"The model '{model}' does not exist.", param="model")

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Is the process alive", tags=["operation"])
    async def healthz() -> Response:
        if lost := service.lost():
            return _json({"status": "failed", "aligners": lost}, status=503)
        return _json({"status": "ok"})

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="Can requests be served", tags=["operation"])
    async def readyz() -> Response:
        upstreams = await service.directory.pings()
        # One upstream that answers is enough to serve its models.
        states = service.aligner_states()
        aligner = next((state for state in states.values() if state != "ok"), "ok")
        ready = service.reviews() and "ok" in upstreams.values()
        leaving = service.admission.leaving
        answer = {
            "status": "draining" if leaving else "ready" if ready else "unready",
            "aligner": aligner,
            "upstreams": upstreams,
        }
        return _json(answer, status=200 if ready and not leaving else 503)

    @router.get("/status", summary="Routes, upstreams and aligners", tags=["operation"])
    async def status() -> Response:
        return _json(report(service))

    @router.get("/metrics", summary="Prometheus metrics", tags=["operation"])
    async def metrics() -> Response:
        content, media_type = service.render_metrics()
        return Response(content, headers={"content-type": media_type})

    return router


def _json(value: Mapping[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
