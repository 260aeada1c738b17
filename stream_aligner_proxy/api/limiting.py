"""How much each client may have: asked before a request is read, given back when it has ended."""

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.access.limits import Limiter, Limits
from stream_aligner_proxy.api.access import refuse
from stream_aligner_proxy.api.faces.face import Shape
from stream_aligner_proxy.api.reading import GRANT
from stream_aligner_proxy.core.errors import Overloaded, ProxyError, RateLimited

_PREFIX = "/v1/"


class Limiting:
    """Middleware over the API's paths. `per_address`: for clients without a key of the proxy's."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: Limiter,
        per_address: Limits,
        shape_of: Callable[[str], Shape],
        count_error: Callable[[ProxyError], None],
        refused: Callable[[str], None],
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._per_address = per_address
        self._shape_of = shape_of
        self._count_error = count_error
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        key: Key | None = scope.get(GRANT)
        limits = self._per_address if key is None else key.limits
        if not limits:
            await self._app(scope, receive, send)
            return
        try:
            place = await self._limiter.take(_address(scope) if key is None else key.name, limits)
        except (RateLimited, Overloaded) as error:
            self._refused(_reason(error))
            await refuse(error, self._shape_of, self._count_error)(scope, receive, send)
            return
        told = place.decision.headers()

        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        try:
            await self._app(scope, receive, send_with_standing if told else send)
        finally:
            place.release()


def _reason(error: ProxyError) -> str:
    return f"limit_{error.type}" if isinstance(error, RateLimited) else "limits_unknown"


def _address(scope: Scope) -> str:
    """A client's. Of IPv6 the network: a client has all of its addresses."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return f"address {host}"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return f"address {IPv6Address(int(address) >> 64 << 64)}/64"
    return f"address {host}"
