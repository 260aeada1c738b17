"""What upstreams offer beside replies, by model: embeddings, images, speech and the like.

Nothing is read but the model's name, and nothing is aligned. Only the addresses listed here exist:
none is made of what a client sends.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.api.faces.openai_errors import OpenAiErrors
from stream_aligner_proxy.api.forwarded_body import ForwardedBody, read
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.reading import forwarded, grant_of, key_of, read_body
from stream_aligner_proxy.api.relay import observed, told_of
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.api.response import HttpOut, WatchedResponse
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import ProxyError, RequestError
from stream_aligner_proxy.core.records import ChatRequest, Mode, Turn
from stream_aligner_proxy.core.watching import Observer, Opening, Watch
from stream_aligner_proxy.upstream.routing.lease import Lease
from stream_aligner_proxy.upstream.routing.table import Target, Targets

# Below `/v1` here, and below the base address there; what each is, for the document.
PATHS: Mapping[str, str] = {
    "embeddings": "Create embeddings",
    "moderations": "Classify texts or images",
    "rerank": "Order documents by a query",
    "score": "Score pairs of texts",
    "images/generations": "Create images",
    "images/edits": "Edit images",
    "images/variations": "Vary an image",
    "audio/speech": "Speak a text",
    "audio/transcriptions": "Write down speech",
    "audio/translations": "Translate speech",
}
_MULTIPART = frozenset(
    ("images/edits", "images/variations", "audio/transcriptions", "audio/translations")
)


def forwarding_routes(service: Service) -> APIRouter:
    router = APIRouter()
    for path, summary in PATHS.items():
        router.add_api_route(
            f"/v1/{path}",
            _endpoint(service, path),
            methods=["POST"],
            name=path,
            summary=f"{summary}: passed to the upstream that serves the model",
            tags=["passed on"],
            openapi_extra={"requestBody": {"required": True, "content": _content(path)}},
        )
    return router


def _content(path: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"model": {"type": "string"}}}
    kinds = ["multipart/form-data"] if path in _MULTIPART else []
    return {kind: {"schema": schema} for kind in [*kinds, "application/json"]}


def _endpoint(service: Service, path: str) -> Callable[[Request], Any]:
    async def forward(request: Request) -> Response:
        content = await read_body(request, service.max_body_bytes)
        body = read(content, request.headers.get("content-type", ""))
        _check_grant(grant_of(request), body.model)
        headers = forwarded(request)
        id = request_id_of(request.scope)
        # No conversation to be kept together: each goes where the weights let it.
        turns = (Turn("user", id),)
        asked = ChatRequest(body.model or "", {}, turns, headers=headers, request_id=id)
        upstream = await _lease(service, asked)
        return ForwardResponse(
            upstream,
            path,
            body,
            headers,
            observer=service.observer,
            opening=Opening(
                Mode.OFF,
                asked,
                path,
                key=key_of(request),
                route=service.treatment(asked.model).route,
            ),
            request_id=id,
            reply_headers=lambda: _reply_headers(upstream, service.show_upstream),
            count_error=service.count_error,
            patience=service.patience,
        )

    return forward


def _check_grant(grant: Key | None, model: str | None) -> None:
    """What is passed on is not reviewed: a key that may not use the mode `off` may not have it."""
    if grant is None:
        return
    if grant.modes is not None and Mode.OFF not in grant.modes:
        raise RequestError(
            "This API key may not use what is passed on unreviewed (mode 'off').",
            status=403,
            code="mode_not_allowed",
        )
    if model is None and grant.models is not None:
        raise RequestError(
            "Missing required parameter: 'model'.",
            param="model",
            code="missing_required_parameter",
        )
    if model is not None:
        grant.check_model(model)


async def _lease(service: Service, asked: ChatRequest) -> Lease:
    """Who serves the model; the only upstream where none is named, as several of these allow."""
    if asked.model:
        return await service.lease(asked)
    upstreams = service.directory.upstreams
    if service.table is not None or len(upstreams) > 1:
        raise RequestError(
            "Missing required parameter: 'model'.",
            param="model",
            code="missing_required_parameter",
        )
    return Lease(Targets((Target(upstreams[0], ""),)), asked, service.watcher)


def _reply_headers(upstream: Lease, show_upstream: bool) -> dict[str, str]:
    told = {"x-stream-aligner-mode": str(Mode.OFF)}
    return told | {"x-stream-aligner-upstream": upstream.name} if show_upstream else told


class ForwardResponse(WatchedResponse):
    """The upstream's answer as it came, a read at a time."""

    def __init__(
        self,
        upstream: Lease,
        path: str,
        body: ForwardedBody,
        client_headers: Mapping[str, str],
        *,
        observer: Observer,
        opening: Opening,
        request_id: str,
        reply_headers: Callable[[], Mapping[str, str]],
        count_error: Callable[[ProxyError], None],
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            request_id=request_id,
            headers=reply_headers,
            count_error=count_error,
            shape=OpenAiErrors(),
            patience=patience,
        )
        self._upstream = upstream
        self._path = path
        self._asked = body
        self._client_headers = client_headers
        self._observer = observer
        self._opening = opening
        self._clock = clock

    async def write_to(self, out: HttpOut) -> None:
        with observed(self._observer, self._opening, self._clock) as (watch, _):
            await self._pass(out, watch)

    async def _pass(self, out: HttpOut, watch: Watch) -> None:
        async with self._upstream.forward(
            self._path,
            self._asked.naming,
            self._asked.content_type,
            {**self._client_headers, **watch.context(0)},
            request_id=self._request_id,
        ) as answer:
            watch.branch_answered(0, self._upstream.name)
            headers = {**told_of(answer.headers), **self._reply_headers()}
            async for piece in answer.pieces:
                if not out.started:
                    await out.start(headers)
                await out.write(piece)
            if not out.started:
                await out.start(headers)
            await out.end()

    async def break_off(self, out: HttpOut, error: ProxyError) -> None:
        """Nothing can be added to sound or an image: the server cuts the connection of an answer
        that is not ended, and so the client knows."""
