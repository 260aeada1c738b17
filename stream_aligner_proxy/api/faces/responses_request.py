"""A Responses request as a chat body: fields, tools and formats; items are in `responses_input`."""

from collections.abc import Mapping, Sequence
from typing import Any

from stream_aligner_proxy.api.faces.responses_input import messages_of
from stream_aligner_proxy.api.faces.responses_schemas import (
    ResponsesBody,
    invalid,
    text_at,
    unsupported,
)

# Chat knows these under the same names.
_FORWARDED = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "stream_aligner",
)
# Nothing of these goes on. What `store` and `metadata` ask for is done here: with a chat upstream
# they would keep its own completion beside the response.
_OURS = frozenset(ResponsesBody.model_fields) - frozenset(_FORWARDED) | {"n"}
_HOSTED = "must be 'function' or 'custom': other tools run at OpenAI, and there is none here"


def as_chat(
    raw: Mapping[str, Any],
    body: ResponsesBody,
    history: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The body for `/v1/chat/completions`. `history`: the items of the previous response.

    Raises `RequestError`, which names the field as this API does.
    """
    chat: dict[str, Any] = {
        name: value
        for name, value in raw.items()
        if name not in _OURS and (value is not None or name not in _FORWARDED)
    }
    chat["messages"] = messages_of(body.instructions, history, items)
    if body.max_output_tokens is not None:
        chat["max_completion_tokens"] = body.max_output_tokens
    if body.tools:
        chat["tools"] = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(body.tools)]
    if body.tool_choice is not None:
        chat["tool_choice"] = _choice(body.tool_choice)
    if body.text is not None:
        if body.text.verbosity is not None:
            chat["verbosity"] = body.text.verbosity
        if (wanted := _format(body.text.format)) is not None:
            chat["response_format"] = wanted
    if body.reasoning is not None and body.reasoning.effort is not None:
        chat["reasoning_effort"] = body.reasoning.effort
    return chat


def _tool(tool: Mapping[str, Any], param: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        if not isinstance(kind, str):
            invalid(f"{param}.type", "must be a string")
        unsupported(f"{param}.type", _HOSTED)
    text_at(tool, "name", param)
    described = {
        name: value for name, value in tool.items() if name != "type" and value is not None
    }
    if kind == "custom" and isinstance(wanted := described.get("format"), dict):
        described["format"] = _grammar(wanted)
    return {"type": kind, kind: described}


def _grammar(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A custom tool's format; chat has a grammar's fields one level deeper."""
    if wanted.get("type") != "grammar":
        return dict(wanted)
    grammar = {name: value for name, value in wanted.items() if name != "type"}
    return {"type": "grammar", "grammar": grammar}


def _choice(choice: object) -> str | dict[str, Any]:
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            invalid("tool_choice", "must be 'none', 'auto', 'required' or an object")
        return choice
    if not isinstance(choice, dict):
        invalid("tool_choice", "must be a string or an object")
    if choice.get("type") != "allowed_tools":
        return _named(choice, "tool_choice")
    allowed = choice.get("tools")
    if not isinstance(allowed, list):
        invalid("tool_choice.tools", "must be a list")
    named = [_named(tool, f"tool_choice.tools[{n}]") for n, tool in enumerate(allowed)]
    mode = text_at(choice, "mode", "tool_choice")
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


def _named(tool: object, param: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        invalid(param, "must be an object")
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        unsupported(f"{param}.type", _HOSTED)
    return {"type": kind, kind: {"name": text_at(tool, "name", param)}}


def _format(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`text.format` as chat's `response_format`, which has a schema's fields one level deeper."""
    kind = "text" if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        invalid("text.format.type", "must be 'text', 'json_object' or 'json_schema'")
    text_at(wanted, "name", "text.format")
    if not isinstance(wanted.get("schema"), dict):
        invalid("text.format.schema", "must be an object")
    described = {k: v for k, v in wanted.items() if k != "type" and v is not None}
    return {"type": "json_schema", "json_schema": described}
