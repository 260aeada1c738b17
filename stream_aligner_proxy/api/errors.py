"""Every error in the words of the API that was asked, by default OpenAI's.

Logged are the kind of error and the request's id; never what the client or an upstream wrote.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.request_id import HEADER, id_headers, request_id_of
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import (
    ProxyError,
    RequestError,
    UpstreamDown,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_log = logging.getLogger(__name__)

# These messages are the proxy's own words; others may repeat a client's or an upstream's.
_TELLING = (UpstreamUnreachable, UpstreamDown, UpstreamTimeout, UpstreamGarbled)


def answer(
    error: ProxyError, body: Mapping[str, Any], extra: Mapping[str, str] | None = None
) -> Response:
    """The HTTP answer for `error`, worded as `body`."""
    headers = {name.lower(): value for name, value in error.headers.items()}
    # The name belongs to our own id, which the middleware adds.
    upstream_id = headers.pop(HEADER, None)
    if upstream_id is not None:
        headers["x-upstream-request-id"] = upstream_id
    return Response(
        orjson.dumps(body),
        status_code=error.status,
        media_type="application/json",
        headers={**headers, **(extra or {})},
    )


def log_error(error: ProxyError, request_id: str) -> None:
    said = f": {error.message}" if isinstance(error, _TELLING) else ""
    kind = type(error).__name__
    if error.upstream is not None:
        kind += f" of upstream {error.upstream!r}"
    code, level = f" {error.code or error.type}", logging.WARNING
    if isinstance(error, UpstreamRejected):
        code = ""  # the upstream's own word
    if isinstance(error, RequestError) or error.by_request:
        level = logging.INFO
    _log.log(level, "request %s: %s %d%s%s", request_id, kind, error.status, code, said)


def internal_error() -> ProxyError:
    """What a client is told of a defect: nothing but that there is one."""
    return ProxyError("The proxy met an internal error.", code="internal_error")


def install(app: FastAPI, service: Service, shape_of: Callable[[str], Shape]) -> None:
    """Answer all errors of `app`, each in the shape of its path's API."""

    def said(
        request: Request, error: ProxyError, extra: Mapping[str, str] | None = None
    ) -> Response:
        shape = shape_of(request.url.path)
        return answer(error, shape.body(error, request_id_of(request.scope)), extra)

    async def proxy_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProxyError)
        service.count_error(error)
        log_error(error, request_id_of(request.scope))
        return said(request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        match error.status_code:
            case 404:
                message = f"Unknown path: {request.method} {request.url.path}"
            case 405:
                message = f"Method {request.method} is not allowed for {request.url.path}"
            case _:
                message = str(error.detail)
        refused = RequestError(message, status=error.status_code, headers=dict(error.headers or {}))
        service.count_error(refused)
        return said(request, refused)

    async def client_gone(request: Request, error: Exception) -> Response:
        # Left while sending its request: nobody reads this answer.
        return Response(status_code=499)

    async def defect(request: Request, error: Exception) -> Response:
        internal = internal_error()
        service.count_error(internal)
        # Outside all other middleware, so the id must be added here.
        return said(request, internal, id_headers(request.scope))

    app.add_exception_handler(ProxyError, proxy_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_gone)
    app.add_exception_handler(Exception, defect)
