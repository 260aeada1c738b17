"""What comes when there is too much already is told to come again, before it is read.

Health, metrics and the page are always answered.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_aligner_proxy.api.admission import Admission, Limits
from stream_aligner_proxy.api.errors import answer
from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.core.errors import Overloaded, ProxyError

_PREFIX = "/v1/"


class Gate:
    """Middleware that admits API requests or turns them away with a 503 and `Retry-After`.

    `ready`: whether the models are loaded. Errors are worded as the path's API words them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        limits: Limits,
        ready: Callable[[], bool],
        shape_of: Callable[[str], Shape],
        count_error: Callable[[ProxyError], None],
    ) -> None:
        self._app = app
        self._admission = admission
        self._limits = limits
        self._ready = ready
        self._shape_of = shape_of
        self._count_error = count_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        admission = self._admission
        refusal = admission.refusal(self._limits)
        if refusal is None and not self._ready():
            refusal = "loading", "The server is still loading its models."
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
            return
        admission.enter()
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            if body := message.get("body"):
                held += len(body)
                admission.held_bytes += len(body)
                if admission.held_bytes > self._limits.max_held_bytes:
                    raise self._overloaded("bytes", "The server holds as many requests as it can.")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            admission.leave()
            admission.held_bytes -= held

    async def _refuse(
        self, refusal: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        error = self._overloaded(*refusal)
        self._count_error(error)
        body = self._shape_of(scope["path"]).body(error, request_id_of(scope))
        await answer(error, body)(scope, receive, send)

    def _overloaded(self, reason: str, message: str) -> Overloaded:
        self._admission.count_shed(reason)
        # The body has not been read: the connection is of no more use. While the server drains, a
        # new connection finds another one.
        return Overloaded(message, headers={"retry-after": "1", "connection": "close"})
