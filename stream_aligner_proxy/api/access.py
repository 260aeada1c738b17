"""Who may come in: the client's key is looked at before anything else is, and goes no further.

Without a key only health and what the operator opened are answered, and the page, which then holds
nothing but a form for the key.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.api.errors import answer
from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.reading import GRANT, KEY, speaks_anthropic
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.core.errors import ProxyError, Unauthorized

ALWAYS_OPEN = ("/", "/healthz", "/readyz")
_BEARER = "bearer "
# With keys of the proxy's own, all that clients send to say who they are is the proxy's to read.
_CREDENTIALS = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"proxy-authorization",
        b"cookie",
        b"openai-organization",
        b"openai-project",
    )
)


class Identify(Protocol):
    def __call__(self, shown: str) -> Key: ...


class Access:
    """Middleware that lets those in who show a key that `identify` knows.

    `header`: where the key is, in clear; None for `Authorization: Bearer`, and for Anthropic's
    clients `x-api-key`. What the key was shown in is taken out of the request, so that nothing
    below can send it on. `refused` is told why, in a word.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Identify,
        header: str | None,
        open_paths: Iterable[str],
        shape_of: Callable[[str], Shape],
        count_error: Callable[[ProxyError], None],
        refused: Callable[[str], None],
    ) -> None:
        self._app = app
        self._identify = identify
        self._header = header
        self._hidden = _CREDENTIALS if header is None else frozenset((header.encode(),))
        self._open = frozenset((*ALWAYS_OPEN, *open_paths))
        self._shape_of = shape_of
        self._count_error = count_error
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = self._shown(scope)
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in self._hidden]
        if scope["path"] not in self._open:
            try:
                if not shown:
                    raise _missing(self._header)
                key = self._identify(shown)
            except Unauthorized as error:
                self._refused(_reason(error, shown))
                error.headers |= {"www-authenticate": "Bearer", "connection": "close"}
                await refuse(error, self._shape_of, self._count_error)(scope, receive, send)
                return
            scope[KEY], scope[GRANT] = key.name, key
        await self._app(scope, receive, send)

    def _shown(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        if self._header is not None:
            return headers.get(self._header, "").strip()
        return bearer_of(headers) or (
            headers.get("x-api-key", "").strip() if speaks_anthropic(scope["path"], headers) else ""
        )


class BringsKey:
    """Middleware for `pass-through`: the API is for those who bring a key. Whether it is good only
    the upstream can tell."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        shape_of: Callable[[str], Shape],
        count_error: Callable[[ProxyError], None],
        refused: Callable[[str], None],
    ) -> None:
        self._app = app
        self._shape_of = shape_of
        self._count_error = count_error
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            headers = Headers(scope=scope)
            theirs = speaks_anthropic(scope["path"], headers) and headers.get("x-api-key")
            if not (headers.get("authorization") or theirs):
                self._refused("no_key")
                error = _missing(None)
                error.headers |= {"www-authenticate": "Bearer", "connection": "close"}
                await refuse(error, self._shape_of, self._count_error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _reason(error: Unauthorized, shown: str) -> str:
    if not shown:
        return "no_key"
    return "expired" if error.code == "expired_api_key" else "wrong_key"


def bearer_of(headers: Headers) -> str:
    """The token of `Authorization: Bearer`, "" where there is none."""
    value = headers.get("authorization", "")
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else ""


def refuse(
    error: ProxyError,
    shape_of: Callable[[str], Shape],
    count_error: Callable[[ProxyError], None],
) -> ASGIApp:
    """The answer, in the words of the path's API."""

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        count_error(error)
        body = shape_of(scope["path"]).body(error, request_id_of(scope))
        await answer(error, body)(scope, receive, send)

    return refusing


def _missing(header: str | None) -> Unauthorized:
    where = "Authorization: Bearer KEY" if header is None else f"{header}: KEY"
    return Unauthorized(f"No API key provided. Send it in the header '{where}'.")
