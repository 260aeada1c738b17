"""`x-request-id` on every answer: the client's own where it is sane, else a new one."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "stream_aligner.request_id"
# Where in the ASGI scope the status of the answer is noted.
STATUS = "stream_aligner.status"
# What else an API calls it, by the beginning of its paths.
_ALSO = {"/v1/messages": "request-id"}


def request_id_of(scope: Scope) -> str:
    return str(scope.get(_KEY, ""))


def id_headers(scope: Scope) -> dict[str, str]:
    """The request's id under every name that the path's API knows."""
    names = [HEADER, *(name for path, name in _ALSO.items() if scope["path"].startswith(path))]
    return dict.fromkeys(names, request_id_of(scope))


class RequestId:
    """Plain ASGI: `BaseHTTPMiddleware` would stand between a stream and its client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(HEADER, "")
        request_id = offered if _SANE.fullmatch(offered) else f"req_{uuid.uuid4().hex}"
        scope[_KEY] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope[STATUS] = message["status"]
                MutableHeaders(scope=message).update(id_headers(scope))
            await send(message)

        await self._app(scope, receive, send_with_id)
