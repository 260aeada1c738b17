"""A plan made by hand, for what is tested without a request."""

from typing import Any

from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.core.records import ChatRequest, Mode


def plan(**differs: Any) -> Plan:
    """That of a plain request in mode `stream`, but for what `differs`."""
    fields: dict[str, Any] = {
        "request": ChatRequest("m", {}, ()),
        "mode": Mode.STREAM,
        "stream": True,
        "include_usage": False,
        "provenance": False,
        "passthrough": None,
        "strength": 0.5,
        "relay_body": {},
    }
    return Plan(**(fields | differs))
