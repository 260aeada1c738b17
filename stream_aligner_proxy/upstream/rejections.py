"""Refusals of an upstream, told to the client without telling it too much. Pure: no I/O.

Rule: no message holds a key, a header or the upstream's address, and none is longer than 2,000
characters. The upstream's status is passed on where the client can act on it; a refused credential
of the proxy's own is the operator's business and becomes a 502.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import UpstreamRejected

MAX_MESSAGE_CHARS = 2000
_PASSED_ON = frozenset((400, 404, 408, 409, 413, 422, 429))
_CREDENTIALS = frozenset((401, 402, 403))
_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id")
_SECONDS = re.compile(r"(\d{1,6})(?:\.\d+)?s")


@dataclass(frozen=True, slots=True, repr=False)
class Refusals:
    """Makes the errors of one exchange.

    `upstream` is its configured name; `proxy_key` tells that the request carried the proxy's key,
    not the client's; `secrets` are blotted out wherever an upstream quotes them.
    """

    upstream: str
    proxy_key: bool = False
    secrets: tuple[str, ...] = ()

    def from_status(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamRejected:
        """The error for an answer whose status is not 200."""
        told = {name: headers[name] for name in _HEADERS if name in headers}
        if "request-id" in headers:  # Anthropic's name for it
            told.setdefault("x-request-id", headers["request-id"])
        value = _parsed(body)
        details = self._details(value, body, headers.get("content-type", ""), status)
        for detail in _google_details(value):
            if detail.get("reason") == "API_KEY_INVALID":
                status = 401  # which Google answers with a 400
            if delay := _SECONDS.fullmatch(str(detail.get("retryDelay"))):
                told.setdefault("retry-after", str(int(delay[1]) + 1))
        return self._error(status, details, told)

    def from_frame(self, frame: Mapping[str, Any], status: int | None = None) -> UpstreamRejected:
        """The error that a frame of the stream carries. Its code may be the status it had, where
        the caller knows no better one."""
        details = _find(frame) or {}
        details.setdefault("message", "the upstream reported an error without saying which")
        if status is None:
            code = str(details.get("code"))
            status = int(code) if code.isdecimal() else 502
        return self._error(status if 400 <= status < 600 else 502, details, {})

    def _error(
        self, status: int, details: Mapping[str, Any], headers: dict[str, str]
    ) -> UpstreamRejected:
        if status in _CREDENTIALS and self.proxy_key:
            return UpstreamRejected(
                f"upstream {self.upstream!r} refused the proxy's credentials",
                status=502,
                code="upstream_credentials",
            )
        if not (status in _PASSED_ON or status in _CREDENTIALS or 500 <= status < 600):
            status = 502
        return UpstreamRejected(
            self._clean(details["message"]),
            status=status,
            type=_text(details.get("type")),
            code=_text(details.get("code")),
            param=_text(details.get("param")),
            headers=headers,
        )

    def _details(
        self, value: object, body: bytes, content_type: str, status: int
    ) -> dict[str, Any]:
        found = _find(value) if isinstance(value, dict) else None
        if found is not None and "message" in found:
            return found
        kind = content_type.partition(";")[0].strip() or "no content type"
        summary = f"upstream {self.upstream!r} answered {status} ({kind}, {len(body)} bytes)"
        if kind == "text/plain" and (said := body[:400].decode("utf-8", "replace").strip()):
            summary += f": {said[:200]}"
        return {**(found or {}), "message": summary}

    def _clean(self, message: object) -> str:
        text = message if isinstance(message, str) else orjson.dumps(message, default=str).decode()
        for secret in self.secrets:
            text = text.replace(secret, "[redacted]")
        if len(text) > MAX_MESSAGE_CHARS:
            text = text[: MAX_MESSAGE_CHARS - 1] + "…"
        return text


def _parsed(body: bytes) -> object:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    # Where Gemini streams JSON, it answers a list, errors too.
    return value[0] if isinstance(value, list) and value else value


def _google_details(value: object) -> Iterator[Mapping[str, Any]]:
    """What Google's errors tell beside the message, by kind."""
    error = value.get("error") if isinstance(value, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    if isinstance(details, list):
        yield from (detail for detail in details if isinstance(detail, dict))


def _find(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Message, type, code and param in the shapes that servers use: OpenAI's, Anthropic's (no
    code), Google's (the type is called status)."""
    error = value.get("error")
    if isinstance(error, dict):
        status = error.get("status")
        found = {"type": status, **error} if isinstance(status, str) else error
    elif isinstance(error, str):
        found = {**value, "message": error}
    elif "message" in value:
        found = dict(value)
    elif "detail" in value:  # FastAPI's own errors: a text, or a list with the place and what
        found = {"message": _detail(value["detail"])}
    else:
        return None
    return {k: found[k] for k in ("message", "type", "code", "param") if found.get(k) is not None}


def _detail(detail: object) -> object:
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        place = ".".join(str(step) for step in detail[0].get("loc", ()))
        return f"{place}: {detail[0].get('msg', 'invalid')}"
    return detail


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:200]
