"""`POST /v1/completions`: a prompt is written on, and what is written is aligned.

The upstream writes on the prompt where it has this API itself; where it only chats, the prompt is
what the user says, and the reply is the completion. The aligner reads the prompt as the user's turn
either way. In mode `off` the upstream's own `/completions` is asked, and passed through.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import Field, StrictBool, StrictInt, StrictStr, field_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.completions import completions_face
from stream_aligner_proxy.api.plan import Plan, Rules, refuse
from stream_aligner_proxy.api.reading import read_body
from stream_aligner_proxy.api.replying import check_choices, of_choice, planned, relay, written
from stream_aligner_proxy.api.schemas import (
    ChatBody,
    Exact,
    Extension,
    Message,
    ResponseFormat,
    StreamOptions,
    parse_object,
    stop_strings,
    validated,
)
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.core.records import ChatRequest, Mode, Turn

# As at OpenAI: a client that does not say how much it wants gets so many tokens.
DEFAULT_MAX_TOKENS = 16
# Prompts times `n`: each is a reply of its own.
MAX_CHOICES = 128
# What an aligned reply does not pass on: answered here, or refused.
_OURS = frozenset(("echo", "suffix", "best_of", "logprobs", "messages"))

_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_PROMPT = {
    "anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]
}


class CompletionBody(Exact):
    """A request to `POST /v1/completions`. Fields not listed are forwarded as they are.

    Token ids are for mode `off` only."""

    model: Annotated[StrictStr, Field(min_length=1)]
    prompt: Annotated[Any, Field(json_schema_extra=_PROMPT)] = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[StrictInt, Field(ge=1)] | None = None
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    logprobs: Any = None
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: Any = None
    no_stop_trim: Any = None
    response_format: ResponseFormat | None = None
    stream_aligner: Extension | None = None

    @field_validator("prompt")
    @classmethod
    def _text_or_ids(cls, value: Any) -> Any:
        if value is None or isinstance(value, str) or _is_list_of(value, str) or _are_ids(value):
            return value
        raise PydanticCustomError(
            "prompt", "must be a text, a list of texts, or tokens' ids, and not empty"
        )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> tuple[str, ...]:
        return stop_strings(value)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts; none where they are not texts."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        return tuple(self.prompt) if _is_list_of(self.prompt, str) else ()

    def as_chat(self) -> ChatBody:
        """What is read of it, in the words of a chat."""
        said = self.texts[0] if self.texts else orjson.dumps(self.prompt).decode()
        return ChatBody(
            model=self.model,
            messages=[Message(role="user", content=said)],
            stream=self.stream,
            stream_options=self.stream_options,
            max_tokens=self.max_tokens or DEFAULT_MAX_TOKENS,
            n=self.n,
            stop=self.stop,
            include_stop_str_in_output=self.include_stop_str_in_output,
            no_stop_trim=self.no_stop_trim,
            response_format=self.response_format,
            stream_aligner=self.stream_aligner,
        )


def completions_route(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/completions",
        summary="Complete a prompt",
        tags=["chat"],
        openapi_extra=json_body(CompletionBody),
    )
    async def completions(request: Request) -> Response:
        raw = parse_object(await read_body(request, service.max_body_bytes))
        return await _complete(service, request, raw, validated(CompletionBody, raw))

    return router


async def _complete(
    service: Service, request: Request, raw: Mapping[str, Any], body: CompletionBody
) -> Response:
    treatment, plan = planned(service, request, raw, body.as_chat())
    first = await service.lease(plan.request)
    face = completions_face(body.texts, echo=bool(body.echo))
    if plan.mode is Mode.OFF and first.relays:
        return relay(service, plan, first, face.shape, path="completions")
    for param, why in _unalignable(body):
        if plan.mode is Mode.OFF:  # with an upstream that has another API
            raise RequestError(
                f"'{param}' has no counterpart in the upstream's API: {why}.",
                param=param,
                code="unsupported_by_upstream",
            )
        refuse(param, why, plan.mode, treatment.rules)
    _check(body, plan, treatment.rules)
    check_choices(service, plan)
    requests = list(_requests(plan, body))
    plan = replace(plan, request=requests[0], choices=len(requests))
    return await written(service, treatment, plan, face, first=first, requests=requests)


def _unalignable(body: CompletionBody) -> Iterator[tuple[str, str]]:
    """What would be wrong over rewritten text, and why."""
    if body.prompt is not None and not body.texts:
        yield "prompt", "only text can be read, not the ids of tokens"
    if body.logprobs is not None and body.logprobs is not False:
        yield "logprobs", "log probabilities do not belong to rewritten text"
    if body.suffix:
        yield "suffix", "a rewritten text cannot be made to end before a given one"
    if body.best_of is not None and body.best_of != (body.n or 1):
        yield "best_of", "of aligned replies none is known to be the best"


def _check(body: CompletionBody, plan: Plan, rules: Rules) -> None:
    if body.prompt is None:
        raise RequestError(
            "Missing required parameter: 'prompt'.",
            param="prompt",
            code="missing_required_parameter",
        )
    if body.max_tokens == 0:
        refuse("max_tokens", "at least one token must be written", plan.mode, rules)
    if (choices := len(body.texts) * plan.choices) > MAX_CHOICES:
        raise RequestError(
            f"Invalid value for 'prompt': {len(body.texts)} prompts with n = {plan.choices} are "
            f"{choices} replies; {MAX_CHOICES} at most.",
            param="prompt",
            code="invalid_value",
        )


def _requests(plan: Plan, body: CompletionBody) -> Iterator[ChatRequest]:
    """A request for each choice of each prompt, in the order of their indices."""
    kept = {name: value for name, value in plan.request.body.items() if name not in _OURS}
    for number, prompt in enumerate(body.texts):
        id = plan.request.request_id
        own = replace(
            plan.request,
            body={**kept, "prompt": prompt},
            conversation=(Turn("user", prompt),),
            request_id=f"{id}-p{number}" if id and number else id,
        )
        for choice in range(plan.choices):
            yield of_choice(own, choice)


def _is_list_of(value: object, kind: type) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
    )


def _are_ids(value: object) -> bool:
    if _is_list_of(value, int):
        return True
    return isinstance(value, list) and bool(value) and all(_is_list_of(ids, int) for ids in value)
