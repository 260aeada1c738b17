"""Input items as they are kept and listed: each with an id, content always as parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from stream_aligner_proxy.api.faces.responses_schemas import invalid

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
}
_MOST = 100


def listed(items: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Items that were read without error, ready to be kept; `key` makes the missing ids."""
    return [_listed(item, f"{key}_in{number}") for number, item in enumerate(items)]


def _listed(item: Mapping[str, Any], key: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    given = item.get("id")
    own_id = given if isinstance(given, str) and given else f"{_PREFIXES.get(kind, 'out')}_{key}"
    made = {**item, "type": kind, "id": own_id}
    if not isinstance(made.get("status"), str):
        made["status"] = "completed"
    if kind == "message" and isinstance(text := item.get("content"), str):
        own = item.get("role") == "assistant"
        part: dict[str, Any] = {"type": "output_text" if own else "input_text", "text": text}
        made["content"] = [{**part, "annotations": [], "logprobs": []} if own else part]
    return made


def page(items: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of a list: `limit`, `order` and `after` as OpenAI's API has them. Raises
    `RequestError`."""
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= _MOST):
        invalid("limit", f"must be a whole number from 1 to {_MOST}")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        invalid("order", "must be 'asc' or 'desc'")
    found = list(items) if order == "asc" else list(reversed(items))
    if (after := query.get("after")) is not None:
        ids = [item["id"] for item in found]
        if after not in ids:
            invalid("after", "must be the id of an item in the list")
        found = found[ids.index(after) + 1 :]
    shown = found[: int(limit)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > len(shown),
    }
