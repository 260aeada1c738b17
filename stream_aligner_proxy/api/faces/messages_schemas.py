"""The request to `POST /v1/messages`: what is read of it.

What a block holds is checked where it is translated; errors name a field as Anthropic's API does,
with dots: `messages.0.content.1.source`.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
)

from stream_aligner_proxy.api.faces.messages_errors import bad, dotted
from stream_aligner_proxy.api.schemas import Extension
from stream_aligner_proxy.core.errors import RequestError

_TEXT, _BLOCKS = "<text>", "<blocks>"
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Block(BaseModel):
    """A block of content; the other fields depend on its type."""

    model_config = ConfigDict(extra="allow")

    type: StrictStr


def _kind(content: object) -> str | None:
    match content:
        case str():
            return _TEXT
        case list():
            return _BLOCKS
        case _:
            return None


Content = Annotated[
    Annotated[StrictStr, Tag(_TEXT)] | Annotated[list[Block], Tag(_BLOCKS)],
    Discriminator(_kind),
]


class InputMessage(BaseModel):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Tool(BaseModel):
    """A tool of the client's; those that run on Anthropic's servers are refused."""

    type: StrictStr | None = None
    name: Annotated[StrictStr, Field(min_length=1)]
    description: StrictStr | None = None
    input_schema: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ToolChoice(BaseModel):
    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Metadata(BaseModel):
    user_id: StrictStr | None = None


class OutputFormat(BaseModel):
    type: Literal["json_schema"]
    # A plain `schema` would hide a method of pydantic's.
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(BaseModel):
    effort: StrictStr | None = None
    format: OutputFormat | None = None


class Thinking(BaseModel):
    """Forwarded as it is."""

    model_config = ConfigDict(extra="allow")

    type: StrictStr
    budget_tokens: Annotated[StrictInt, Field(ge=1)] | None = None


class CountTokensBody(BaseModel):
    """A request to `POST /v1/messages/count_tokens`."""

    model: Annotated[StrictStr, Field(min_length=1)]
    messages: Annotated[list[InputMessage], Field(min_length=1)]
    system: Content | None = None
    stop_sequences: list[StrictStr] | None = None
    stream: StrictBool | None = None
    temperature: Annotated[_Number, Field(ge=0)] | None = None
    top_p: Annotated[_Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    metadata: Metadata | None = None
    service_tier: StrictStr | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    stream_aligner: Extension | None = None


class MessagesBody(CountTokensBody):
    """A request to `POST /v1/messages`. Fields not listed are forwarded as they are."""

    max_tokens: Annotated[StrictInt, Field(ge=1)]


_Body = TypeVar("_Body", bound=CountTokensBody)


def read(kind: type[_Body], body: dict[str, Any]) -> _Body:
    """Raises `RequestError`."""
    # The type is what explains the other fields that are missing there.
    for i, tool in enumerate(_listed(body.get("tools"))):
        if isinstance(tool, dict) and tool.get("type") not in (None, "custom"):
            raise bad(
                f"tools.{i}.type",
                f"tools of type '{str(tool['type'])[:60]}' run on Anthropic's servers, which are "
                "not asked here; tools of the client's have the type 'custom' or none",
            )
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _refusal(error: ValidationError) -> RequestError:
    """The first mistake. The input's values are never repeated."""
    detail = error.errors(include_input=False, include_url=False)[0]
    place = dotted([step for step in detail["loc"] if step not in (_TEXT, _BLOCKS)])
    match detail["type"]:
        case "missing":
            what = "Field required"
        case "extra_forbidden":
            what = f"Extra inputs are not permitted; known: {', '.join(Extension.model_fields)}"
        case "union_tag_invalid" | "union_tag_not_found":
            what = "Input should be a string or a list of content blocks"
        case "too_short" | "string_too_short":
            what = "Input should not be empty"
        case "dict_type" | "model_type" | "model_attributes_type":
            what = "Input should be an object"
        case _:
            what = detail["msg"]
    return bad(place, what)
