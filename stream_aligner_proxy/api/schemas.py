"""The chat request at the wire: what this proxy reads of it, and nothing more.

The body is parsed once. The fields below are checked, because the proxy acts on them; every other
field goes to the upstream untouched, whatever it is. Errors name the field (`param`).
"""

from typing import Annotated, Any, Literal, TypeVar

import orjson
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
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.core.records import Mode, Turn

EXTENSION = "stream_aligner"
# What orjson can write back: its reader goes deeper than its writer.
_MAX_DEPTH = 200
_NEEDED, _MISSPELT = "needed_here", "misspelt"
_Body = TypeVar("_Body", bound=BaseModel)
_TEXT, _PARTS, _NONE = "<text>", "<parts>", "<none>"


def _missing(field: str, why: str) -> PydanticCustomError:
    """An error of a field that is only sometimes required; `_refusal` adds its name."""
    return PydanticCustomError(_NEEDED, "{why}", {"field": field, "why": why})


class Exact(BaseModel):
    """What goes on upstream in full, though only some fields of it are read: none of these may
    come a second time in other case, which some servers' JSON readers would take for the first."""

    @model_validator(mode="before")
    @classmethod
    def _no_other_case(cls, value: object) -> object:
        if isinstance(value, dict):
            for name in value.keys() - cls.model_fields.keys():
                if (known := name.casefold()) in cls.model_fields:
                    raise PydanticCustomError(_MISSPELT, "{known}", {"field": name, "known": known})
        return value


class Part(Exact):
    """One part of a message's content. Parts that are not text are forwarded, not reviewed."""

    type: StrictStr
    text: StrictStr | None = None
    refusal: StrictStr | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> "Part":
        if self.type == "text" and self.text is None:
            raise _missing("text", "a part of type 'text' needs a string here")
        return self


def _kind(content: object) -> str | None:
    match content:
        case None:
            return _NONE
        case str():
            return _TEXT
        case list():
            return _PARTS
        case _:
            return None


class Message(Exact):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        Annotated[StrictStr, Tag(_TEXT)]
        | Annotated[list[Part], Tag(_PARTS)]
        | Annotated[None, Tag(_NONE)],
        Discriminator(_kind),
    ] = None
    refusal: StrictStr | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role in ("system", "developer", "user"):
            raise _missing("content", f"a message of role '{self.role}' needs content")
        return self

    def text(self) -> str:
        """Text and refusals, one per line; in images and sound the aligner reads nothing."""
        if isinstance(self.content, list):
            said = [part.refusal if part.text is None else part.text for part in self.content]
        else:
            said = [self.content]
        return "\n".join(text for text in (*said, self.refusal) if text is not None)


class ResponseFormat(Exact):
    type: StrictStr


class StreamOptions(Exact):
    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class Extension(BaseModel):
    """This proxy's own field, `stream_aligner`: removed before the request is forwarded."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode | None = None
    provenance: StrictBool | None = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None = None


def stop_strings(value: object) -> tuple[str, ...]:
    """A field's value as stop strings, for its validator."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    return tuple(stop for stop in stops if stop)


class ChatBody(Exact):
    """A request to `POST /v1/chat/completions`. Fields not listed are forwarded as they are."""

    model: Annotated[StrictStr, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0)] | None = None
    stop: tuple[str, ...] = ()
    # What vLLM and SGLang call it.
    include_stop_str_in_output: Any = None
    no_stop_trim: Any = None
    modalities: list[StrictStr] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: ResponseFormat | None = None
    store: StrictBool | None = None
    moderation: dict[str, Any] | None = None
    stream_aligner: Extension | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> tuple[str, ...]:
        return stop_strings(value)

    def conversation(self) -> tuple[Turn, ...]:
        return tuple(Turn(message.role, message.text()) for message in self.messages)

    def stop_included(self) -> bool:
        """Whether the reply holds the stop string that ends it."""
        return self.include_stop_str_in_output is True or self.no_stop_trim is True

    def token_limit(self) -> int | None:
        """The most tokens the client asked for; the newer name wins, as it does at OpenAI."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens


def parse(raw: bytes) -> tuple[dict[str, Any], ChatBody]:
    """The body as sent, and the fields of it that are read. Raises `RequestError`."""
    body = parse_object(raw)
    return body, validated(ChatBody, body)


def parse_object(raw: bytes) -> dict[str, Any]:
    """A request's body, which must be a JSON object. Raises `RequestError`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"The request body is not valid JSON: {error.msg} (line {error.lineno}, "
            f"column {error.colno})",
            code="invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise RequestError("The request body must be a JSON object.", code="invalid_json")
    if raw.count(b"[") + raw.count(b"{") > _MAX_DEPTH and _too_deep(body):
        raise RequestError(f"The request body is nested more than {_MAX_DEPTH} levels deep.")
    return body


def validated(model: type[_Body], body: object) -> _Body:
    """The fields of `body` that `model` reads. Raises `RequestError`, which names the field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _too_deep(body: object) -> bool:
    level = [body]
    for _ in range(_MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return True


def _refusal(error: ValidationError) -> RequestError:
    """The first mistake, as OpenAI would say it. The input's values are never repeated."""
    details = error.errors(include_input=False, include_url=False)
    detail = details[0]
    steps = [step for step in detail["loc"] if step not in (_TEXT, _PARTS, _NONE)]
    if detail["type"] in (_NEEDED, _MISSPELT):
        steps.append(detail["ctx"]["field"])
    param = ""
    for step in steps:
        param += f"[{step}]" if isinstance(step, int) else f".{step}"
    param = param.removeprefix(".")
    match detail["type"]:
        case "missing":
            return RequestError(
                f"Missing required parameter: '{param}'.",
                param=param,
                code="missing_required_parameter",
            )
        case _ if detail["type"] == _MISSPELT:
            return RequestError(
                f"Unknown parameter: '{param}'. Did you mean '{detail['ctx']['known']}'?",
                param=param,
                code="unknown_parameter",
            )
        case "extra_forbidden":
            message = f"Unknown parameter: '{param}'."
            if steps[0] == EXTENSION:
                known = ", ".join(Extension.model_fields)
                message = f"Unknown key '{param}'; '{EXTENSION}' knows: {known}."
            return RequestError(message, param=param, code="unknown_parameter")
        case "union_tag_invalid" | "union_tag_not_found":
            what = "must be a string or a list of content parts"
        case "too_short" | "string_too_short":
            what = "must not be empty"
        case "dict_type" | "model_type" | "model_attributes_type":
            what = "must be an object"
        case _:
            what = detail["msg"][:1].lower() + detail["msg"][1:]
            what = what.replace("input should be", "must be")
    return RequestError(f"Invalid value for '{param}': {what}.", param=param, code="invalid_value")
