"""An OpenAI chat body, read for a translation: what it holds, and what has no counterpart. Pure.

A native wire drops silently only what does not change the meaning of the reply. Whatever else it
cannot say in the other API is a `RequestError` that names the field.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stream_aligner_proxy.core.errors import RequestError

# May be left out: tuning that no model promises to follow, and bookkeeping.
HARMLESS = frozenset(
    (
        "frequency_penalty",
        "logit_bias",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
        "verbosity",
    )
)
# May be there as long as it asks for what happens anyway.
_AS_USUAL: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "top_logprobs": (0,),
}
_COMMON = frozenset(
    (
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "response_format",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
    )
)
# A `thinking` object's budget is of an effort while it is below so many tokens.
_EFFORTS = ((4096, "low"), (16384, "medium"))
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)

ToolMode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of an earlier assistant turn. `extra` is what its `extra_content` holds."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Function:
    """A tool definition. `parameters` is a JSON schema, None for a function without any."""

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None
    strict: bool


def refusal(param: str, why: str) -> RequestError:
    """The error that names the field."""
    return RequestError(f"'{param}' {why}.", param=param, code="unsupported_by_upstream")


def check_fields(body: Mapping[str, Any], own: frozenset[str], api: str) -> None:
    """Raise `RequestError` for the first field that neither this API nor silence can answer."""
    for name, value in body.items():
        if value is None or name in _COMMON or name in own or name in HARMLESS:
            continue
        if value not in _AS_USUAL.get(name, ()):
            raise refusal(name, f"has no counterpart in {api}")


def token_limit(body: Mapping[str, Any], max_tokens: int | None) -> int | None:
    """The branch's own limit, or else the client's."""
    if max_tokens is not None:
        return max_tokens
    limit: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return limit


def stop_strings(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    return [text for text in stops if text]


def parts_of(message: Mapping[str, Any], place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of a message's content and where each stands; a plain text is one part."""
    content = message.get("content")
    if isinstance(content, str):
        yield f"{place}.content", {"type": "text", "text": content}
        return
    for i, part in enumerate(content or ()):
        said = part.get("refusal") if part.get("type") == "refusal" else None
        text = {"type": "text", "text": said}
        yield f"{place}.content[{i}]", text if isinstance(said, str) else part


def text_of(message: Mapping[str, Any], place: str, who: str) -> str:
    """The text of a message that may hold nothing else."""
    texts = []
    for where, part in parts_of(message, place):
        if part.get("type") != "text":
            raise refusal(where, f"must be text in a {who} message")
        texts.append(part["text"])
    return "\n".join(texts)


def url_of(part: Mapping[str, Any], place: str) -> str:
    """The address in an `image_url` part."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url:
        raise refusal(f"{place}.image_url.url", "must be a text")
    return url


def file_data_of(part: Mapping[str, Any], place: str) -> str:
    """The data URL in a `file` part."""
    file = part.get("file")
    data = file.get("file_data") if isinstance(file, Mapping) else None
    if not isinstance(data, str):
        raise refusal(
            f"{place}.file", "must hold 'file_data': this upstream knows no uploaded files"
        )
    return data


def from_data_url(url: str) -> tuple[str, str] | None:
    """Media type and base64 data; None for any other address."""
    found = _DATA_URL.match(url)
    return (found[1], url[found.end() :]) if found else None


def calls_of(message: Mapping[str, Any], place: str) -> Iterator[Call]:
    """The tool calls of an assistant message."""
    if message.get("function_call"):
        raise refusal(f"{place}.function_call", "is not supported: use tool_calls")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise refusal(f"{place}.tool_calls", "must be a list")
    for i, call in enumerate(calls):
        where = f"{place}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise refusal(f"{where}.function", "must be an object with a name")
        if not isinstance(call.get("id"), str):
            raise refusal(f"{where}.id", "must be a text")
        extra = call.get("extra_content")
        yield Call(
            call["id"],
            function["name"],
            _arguments(function.get("arguments"), f"{where}.function.arguments"),
            extra if isinstance(extra, Mapping) else {},
        )


def _arguments(text: object, place: str) -> Mapping[str, Any]:
    try:
        value = orjson.loads(text or "{}") if isinstance(text, str | None) else None
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise refusal(place, "must be a JSON object, written as a text")
    return value


def functions_of(body: Mapping[str, Any]) -> list[Function]:
    """The tools that a request defines."""
    found = []
    for i, tool in enumerate(body.get("tools") or ()):
        function = tool.get("function")
        if tool.get("type") != "function":
            raise refusal(f"tools[{i}].type", "must be 'function' for this upstream")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise refusal(f"tools[{i}].function", "must be an object with a name")
        parameters = function.get("parameters")
        if not isinstance(parameters, Mapping | None):
            raise refusal(f"tools[{i}].function.parameters", "must be an object")
        description = function.get("description")
        found.append(
            Function(
                function["name"],
                description if isinstance(description, str) else None,
                parameters,
                function.get("strict") is True,
            )
        )
    return found


def tool_mode(body: Mapping[str, Any]) -> tuple[ToolMode, str] | None:
    """What `tool_choice` asks for, and the name of the tool where it names one."""
    match body.get("tool_choice"):
        case None:
            return None
        case "auto" | "none" | "required" as mode:
            return mode, ""
        case {"type": "function", "function": {"name": str(name)}}:
            return "named", name
        case _:
            raise refusal("tool_choice", "must be 'auto', 'none', 'required' or name one function")


def effort_of(thinking: object) -> str | None:
    """What OpenAI calls as much thinking; None where the model shall decide, or shall not think:
    there is no word for this that all models take."""
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if not isinstance(budget, int):
        return None
    return next((effort for most, effort in _EFFORTS if budget < most), "high")


def json_schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema that `response_format` asks for; None where it asks for no schema."""
    match body.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return schema
        case {"type": "json_schema"}:
            raise refusal("response_format.json_schema.schema", "must be an object")
        case None | {"type": "text" | "json_object"}:
            return None
        case _:
            raise refusal("response_format", "is of a type that this upstream does not know")
