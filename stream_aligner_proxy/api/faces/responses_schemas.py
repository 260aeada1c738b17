"""The Responses request at the wire: what is read of it, and what has no counterpart here.

Fields not listed go to the upstream as they are, as in chat. Items, tools and formats are read
where they are translated.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, WithJsonSchema

from stream_aligner_proxy.api.schemas import Extension, validated
from stream_aligner_proxy.core.errors import RequestError

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_LOGPROBS = "message.output_text.logprobs"
# What may be included: all but the first belong to tools that no request can have here, or is
# there anyway.
_INCLUDABLE = (
    _LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
# Chat's fields that this API calls otherwise: they would contradict what is translated.
_CALLED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
    "n": None,
    "logprobs": None,
    "modalities": None,
    "audio": None,
    "web_search_options": None,
}


class TextConfig(BaseModel):
    """What the text must be. The format is read where it is translated."""

    format: dict[str, Any] | None = None
    verbosity: StrictStr | None = None


class Reasoning(BaseModel):
    """How much is thought. What is not `effort` asks for what only OpenAI's own server does."""

    model_config = ConfigDict(extra="allow")

    effort: StrictStr | None = None
    summary: StrictStr | None = None
    generate_summary: StrictStr | None = None
    mode: StrictStr | None = None
    context: StrictStr | None = None


class ResponseStreamOptions(BaseModel):
    include_obfuscation: StrictBool | None = None


class ResponsesBody(BaseModel):
    """A request to `POST /v1/responses`. Fields not listed are forwarded as they are."""

    model: Annotated[StrictStr, Field(min_length=1)]
    input: Annotated[
        Any,
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
        ),
    ]
    instructions: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}),
    ] = None
    parallel_tool_calls: StrictBool | None = None
    max_tool_calls: Annotated[StrictInt, Field(ge=1)] | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, StrictStr] | None = None
    store: StrictBool | None = None
    previous_response_id: StrictStr | None = None
    include: list[StrictStr] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    truncation: StrictStr | None = None
    background: StrictBool | None = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    user: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    service_tier: StrictStr | None = None
    stream_aligner: Extension | None = None


def read(raw: Mapping[str, Any]) -> ResponsesBody:
    """The fields that are read. Raises `RequestError` for what is wrong or cannot be done here."""
    for name, ours in _CALLED.items():
        if raw.get(name) is not None and not (name == "n" and raw[name] == 1):
            instead = f"; here it is '{ours}'" if ours else ""
            raise RequestError(
                f"Unsupported parameter: '{name}' is not a parameter of this API{instead}.",
                param=name,
                code="unsupported_parameter",
            )
    body = validated(ResponsesBody, raw)
    if body.background:
        unsupported("background", "a reply is written while its client listens")
    if body.conversation is not None:
        unsupported(
            "conversation", "conversations are not kept; use 'previous_response_id' or 'input'"
        )
    if body.prompt is not None:
        unsupported("prompt", "templates are not kept; send 'instructions' and 'input'")
    if body.context_management is not None:
        unsupported("context_management", "a conversation is sent to the upstream as it is")
    if body.truncation not in (None, "disabled"):
        unsupported("truncation", "nothing is left out of a conversation; only 'disabled' is known")
    if body.top_logprobs:
        unsupported("top_logprobs", "log probabilities do not belong to rewritten text")
    for number, wanted in enumerate(body.include or ()):
        if wanted == _LOGPROBS:
            unsupported(f"include[{number}]", "log probabilities do not belong to rewritten text")
        if wanted not in _INCLUDABLE:
            invalid(f"include[{number}]", f"must be one of {', '.join(_INCLUDABLE[1:])}")
    if body.reasoning is not None:
        if body.reasoning.mode not in (None, "standard"):
            unsupported("reasoning.mode", "only 'standard' is known")
        if body.reasoning.context not in (None, "auto"):
            unsupported("reasoning.context", "only 'auto' is known")
    return body


def invalid(param: str, what: str) -> NoReturn:
    """Raises the `RequestError` for a value that is wrong. Values are never repeated."""
    raise RequestError(f"Invalid value for '{param}': {what}.", param=param, code="invalid_value")


def unsupported(param: str, why: str) -> NoReturn:
    """Raises the `RequestError` for what cannot be done here."""
    raise RequestError(
        f"'{param}' cannot be served here: {why}.", param=param, code="unsupported_value"
    )


def text_at(item: Mapping[str, Any], key: str, param: str) -> str:
    """A string that must be there."""
    value = item.get(key)
    if value is None:
        raise RequestError(
            f"Missing required parameter: '{param}.{key}'.",
            param=f"{param}.{key}",
            code="missing_required_parameter",
        )
    if not isinstance(value, str):
        invalid(f"{param}.{key}", "must be a string")
    return value
