"""Reading a request: its body within the limit, and the headers that may go on."""

from collections.abc import Mapping

from fastapi import Request

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.core.errors import RequestError

_FORWARDED = (
    "authorization",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
)


# Where in the ASGI scope the name of the client's key is kept.
KEY = "stream_aligner.key"
# And what that key may be used for: its `Key`.
GRANT = "stream_aligner.grant"


async def read_body(request: Request, limit: int) -> bytes:
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


def forwarded(request: Request) -> dict[str, str]:
    """The client's headers that may go on; the upstream client decides by its own key.

    Anthropic's clients send their key as `x-api-key`; it is then what a bearer token would be. Not
    where nothing says that it is theirs: gateways use the name for keys of their own.
    """
    told = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    theirs = speaks_anthropic(request.url.path, request.headers)
    if theirs and "authorization" not in told and (key := request.headers.get("x-api-key")):
        told["authorization"] = f"Bearer {key}"
    return told


def speaks_anthropic(path: str, headers: Mapping[str, str]) -> bool:
    """Whether `x-api-key` is the client's key."""
    return path.startswith("/v1/messages") or "anthropic-version" in headers


def key_of(request: Request) -> str | None:
    """The name of the proxy's key that the client showed, None where it needed none."""
    name: str | None = request.scope.get(KEY)
    return name


def grant_of(request: Request) -> Key | None:
    """What the client may do; None: all that the operator allows."""
    grant: Key | None = request.scope.get(GRANT)
    return grant


def path_of(request: Request) -> str:
    """Which API was asked, as in `chat/completions`."""
    return request.url.path.removeprefix("/v1/").strip("/")
