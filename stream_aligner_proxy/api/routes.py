"""The routes: read the request, decide, hand over to the response."""

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.plan import Plan, decide
from stream_aligner_proxy.api.relay import RelayResponse
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.api.response import ReplyResponse
from stream_aligner_proxy.api.schemas import ChatBody, parse
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.api.status import report
from stream_aligner_proxy.core.errors import ModelNotFound, RequestError, UpstreamError
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.session import Session
from stream_aligner_proxy.upstream.routing.lease import Lease

_FORWARDED = (
    "authorization",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
)
_SCHEMA_REF = "#/components/schemas/{model}"
_CHAT_DOC: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _SCHEMA_REF.format(model="ChatBody")}}},
    }
}


def body_schemas() -> dict[str, Any]:
    """JSON schemas for the OpenAPI document: the body is parsed by hand, so FastAPI knows none."""
    schema = ChatBody.model_json_schema(ref_template=_SCHEMA_REF)
    return {**schema.pop("$defs", {}), "ChatBody": schema}


def routes(service: Service) -> APIRouter:
    """All routes over one service."""
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        summary="Create a chat completion",
        tags=["chat"],
        openapi_extra=_CHAT_DOC,
    )
    async def chat_completions(request: Request) -> Response:
        raw, body = parse(await _read(request, service.max_body_bytes))
        treatment = service.treatment(body.model)
        plan = decide(
            raw,
            body,
            treatment.rules,
            scopes=treatment.aligner.scopes,
            strengths=treatment.aligner.strengths,
            headers=_forwarded(request),
            request_id=request_id_of(request.scope),
        )
        upstream = await service.lease(plan.request)

        def headers() -> dict[str, str]:
            """Known when the reply begins: until then another upstream may have to write it."""
            return _reply_headers(plan, upstream, service.show_upstream)

        if plan.mode is Mode.OFF and upstream.relays:
            return RelayResponse(
                upstream,
                plan,
                observers=service.observers,
                request_id=plan.request.request_id,
                headers=headers,
                count_error=service.count_error,
            )
        session = Session(
            plan.request,
            upstream=upstream,
            aligner=treatment.aligner,
            policy=treatment.policy(plan.mode, plan.strength),
            observers=service.observers,
        )
        return ReplyResponse(
            session,
            model=plan.request.model,
            stream=plan.stream,
            include_usage=plan.include_usage,
            provenance=plan.provenance and plan.mode is not Mode.OFF,
            request_id=plan.request.request_id,
            headers=headers,
            count_error=service.count_error,
        )

    @router.get("/v1/models", summary="List the models of all upstreams", tags=["models"])
    async def list_models(request: Request) -> Response:
        models = await service.directory.models(_forwarded(request))
        return _json({"object": "list", "data": models})

    @router.get("/v1/models/{model:path}", summary="One model", tags=["models"])
    async def get_model(request: Request, model: str) -> Response:
        for known in await service.directory.models(_forwarded(request)):
            if known["id"] == model:
                return _json(known)
        raise ModelNotFound(f"The model '{model}' does not exist.", param="model")

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Is the process alive", tags=["operation"])
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="Can requests be served", tags=["operation"])
    async def readyz() -> Response:
        upstreams = {}
        for upstream in service.directory.upstreams:
            try:
                await upstream.ping()
                upstreams[upstream.name] = "ok"
            except UpstreamError as error:
                upstreams[upstream.name] = error.code or error.type
        # One upstream that answers is enough to serve its models.
        states = service.aligner_states()
        aligner = next((state for state in states.values() if state != "ok"), "ok")
        ready = aligner == "ok" and "ok" in upstreams.values()
        answer = {
            "status": "ready" if ready else "unready",
            "aligner": aligner,
            "upstreams": upstreams,
        }
        return _json(answer, status=200 if ready else 503)

    @router.get("/status", summary="Routes, upstreams and aligners", tags=["operation"])
    async def status() -> Response:
        return _json(report(service))

    @router.get("/metrics", summary="Prometheus metrics", tags=["operation"])
    async def metrics() -> Response:
        content, media_type = service.render_metrics()
        return Response(content, headers={"content-type": media_type})

    return router


async def _read(request: Request, limit: int) -> bytes:
    """The body, no more than `limit` bytes of it."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            "The request body must not be compressed (content-encoding).",
            status=415,
            code="unsupported_encoding",
            headers={"connection": "close"},
        )
    too_large = RequestError(
        f"The request body is larger than {limit} bytes.",
        status=413,
        code="request_too_large",
        # What was not read would otherwise have to be read before the next request.
        headers={"connection": "close"},
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _forwarded(request: Request) -> dict[str, str]:
    """The client's headers that may go on; the upstream client decides by its own key."""
    return {name: request.headers[name] for name in _FORWARDED if name in request.headers}


def _reply_headers(plan: Plan, upstream: Lease, show_upstream: bool) -> dict[str, str]:
    headers = {"x-stream-aligner-mode": str(plan.mode), "x-stream-aligner-continuation": "none"}
    if plan.mode is Mode.STREAM:
        continuation = upstream.way(plan.request)
        headers["x-stream-aligner-continuation"] = continuation.way
        headers["x-stream-aligner-class"] = continuation.found
    if show_upstream:
        headers["x-stream-aligner-upstream"] = upstream.name
    if plan.passthrough is not None:
        headers["x-stream-aligner-passthrough"] = plan.passthrough
    return headers


def _json(value: Mapping[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
