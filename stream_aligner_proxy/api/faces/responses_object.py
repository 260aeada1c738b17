"""The Response object: what was asked, told again, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream_aligner_proxy.api.faces.describing import summaries, usage_object
from stream_aligner_proxy.api.faces.responses_schemas import ResponsesBody
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import Finished, Mode, Usage

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One response before it is written. `told`: the request's fields that its object repeats.
    `key` makes its id and those of its items; `created_at` is in seconds since the epoch."""

    key: str
    created_at: int
    told: Mapping[str, Any]
    obfuscated: bool = False

    @property
    def id(self) -> str:
        return f"resp_{self.key}"


def told(body: ResponsesBody, *, kept: bool) -> dict[str, Any]:
    """The fields of a request that the object repeats, and what holds where it says nothing; null
    where the upstream decides."""
    wanted = body.text
    text: dict[str, Any] = {"format": (wanted and wanted.format) or {"type": "text"}}
    if wanted is not None and wanted.verbosity is not None:
        text["verbosity"] = wanted.verbosity
    thinks = body.reasoning
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": thinks and thinks.effort,
            "summary": thinks and (thinks.summary or thinks.generate_summary),
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": body.service_tier,
        "store": kept,
        "temperature": body.temperature,
        "text": text,
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return dict(tool)
    return {"description": None, "parameters": None, "strict": None, **tool}


def outcome(finish_reason: str) -> tuple[str, str]:
    """The response's status, and why it is incomplete; empty where it is not."""
    reason = _INCOMPLETE.get(finish_reason, "")
    return ("incomplete" if reason else "completed"), reason


def begun(asked: Asked) -> dict[str, Any]:
    """The object while the reply is being written."""
    return _response(asked, "in_progress", ())


def ended(
    asked: Asked,
    finished: Finished,
    items: Sequence[Mapping[str, Any]],
    sentences: list[dict[str, Any]] | None,
    at: int,
) -> dict[str, Any]:
    """The final object. `sentences` where they are told; `at`: seconds since the epoch."""
    status, reason = outcome(finished.finish_reason)
    response = _response(asked, status, items)
    if reason:
        response["incomplete_details"] = {"reason": reason}
    else:
        response["completed_at"] = at
    if finished.usage is not None:
        response["usage"] = usage_of(finished.usage)
    if finished.mode is not Mode.OFF:
        response[EXTENSION] = summaries([finished], None if sentences is None else [sentences])
    return response


def failed(asked: Asked, error: ProxyError, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The object of a reply that broke off. The API knows few codes; the event `error` that comes
    with it has the proxy's own."""
    code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(error.status, "server_error")
    response = _response(asked, "failed", items)
    response["error"] = {"code": code, "message": error.message}
    return response


def _response(asked: Asked, status: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "id": asked.id,
        "object": "response",
        "created_at": asked.created_at,
        "status": status,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": list(items),
        **asked.told,
        "usage": None,
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """Chat's counts under this API's names."""
    counts = usage_object(usage)
    prompt = counts.get("prompt_tokens_details")
    completion = counts.get("completion_tokens_details")
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": _count(prompt, "cached_tokens"),
            "cache_write_tokens": _count(prompt, "cache_write_tokens"),
        },
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": _count(completion, "reasoning_tokens")},
        "total_tokens": counts["total_tokens"],
    }


def _count(details: object, name: str) -> int:
    value = details.get(name) if isinstance(details, Mapping) else None
    return value if isinstance(value, int) else 0
