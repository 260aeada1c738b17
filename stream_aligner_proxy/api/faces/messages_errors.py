"""Errors as Anthropic words them, and the names that its clients know fields by.

Source: Anthropic's API reference (errors) and its guide to streaming messages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import ProxyError, RequestError
from stream_aligner_proxy.upstream.wires.anthropic_words import STATUS

_TYPES = {
    **{status: kind for kind, status in STATUS.items()},
    503: "overloaded_error",
}
# What this API calls a chat request's fields; an error may come from where only those are known.
_NAMES = {
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "user": "metadata.user_id",
}


def bad(place: str, what: str) -> RequestError:
    """The error that names a field, as in `messages.0.content.1.source: Field required`."""
    return RequestError(f"{place}: {what}", param=place, code="invalid_value")


def dotted(steps: Sequence[str | int]) -> str:
    return ".".join(map(str, steps))


class AnthropicErrors:
    """`{"type": "error", "error": {type, message}, "request_id"}`."""

    def body(self, error: ProxyError, request_id: str) -> Mapping[str, Any]:
        told = {"type": _type(error.status), "message": _message(error)}
        return {"type": "error", "error": told, "request_id": request_id}

    def end(self, error: ProxyError, request_id: str) -> bytes:
        """One `error` event; SDKs raise it. The message has no `message_stop`."""
        return b"event: error\ndata: " + orjson.dumps(self.body(error, request_id)) + b"\n\n"


def _type(status: int) -> str:
    kind = "invalid_request_error" if status < 500 else "api_error"
    return _TYPES.get(status, kind)


def _message(error: ProxyError) -> str:
    theirs = _NAMES.get(error.param or "")
    if theirs is None or not isinstance(error, RequestError):
        return error.message
    return error.message.replace(f"'{error.param}'", f"'{theirs}'")
