"""`POST /v1/align`: reviews answers that are given, without an upstream.

The results are the loop's own: a session runs over the given answer as over a reply of an upstream
that cannot continue. So sentences are cut, reviewed together, rewritten and passed over exactly as
in a stream, each given the corrected text before it.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from starlette.responses import Response

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.api.align_response import AlignResponse
from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.describing import sentence_object
from stream_aligner_proxy.api.plan import check_strength
from stream_aligner_proxy.api.reading import grant_of, read_body
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.api.schemas import Message, parse_object, validated
from stream_aligner_proxy.api.service import Service, Treatment
from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.core.records import ChatRequest, Delivery, Finished, Mode, Scope, Turn
from stream_aligner_proxy.core.watching import Opening
from stream_aligner_proxy.session import Session
from stream_aligner_proxy.upstream.given import GivenAnswer

MAX_ITEMS = 128


class AlignItem(BaseModel):
    """A question and its answer. Either `messages`, the conversation that the answer is given to,
    or `question`."""

    model_config = ConfigDict(extra="forbid")

    answer: Annotated[StrictStr, Field(min_length=1)]
    question: StrictStr | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    model: Annotated[StrictStr, Field(min_length=1)] | None = None
    scope: Literal["sentence", "whole"] | None = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None = None

    def conversation(self) -> tuple[Turn, ...]:
        """Raises `RequestError` unless there is exactly one."""
        if self.messages is None and self.question is None:
            raise RequestError(
                "Missing required parameter: 'messages' (or 'question').",
                param="messages",
                code="missing_required_parameter",
            )
        if self.messages is not None and self.question is not None:
            raise RequestError(
                "Invalid value for 'question': there are 'messages' already.",
                param="question",
                code="invalid_value",
            )
        if self.messages is None:
            return (Turn("user", self.question or ""),)
        return tuple(Turn(message.role, message.text()) for message in self.messages)


class Batch(BaseModel):
    """Each item is read when its turn comes, so that one that is wrong spoils no other."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Any], Field(min_length=1)]


class AlignBody(BaseModel):
    """A request to `POST /v1/align`: one answer, or `items` with as many as 128."""

    items: Annotated[list[AlignItem], Field(min_length=1, max_length=MAX_ITEMS)] | None = None
    answer: StrictStr | None = None
    question: StrictStr | None = None
    messages: list[Message] | None = None
    model: StrictStr | None = None
    scope: Literal["sentence", "whole"] | None = None
    strength: float | None = None


def align_route(service: Service) -> APIRouter:
    router = APIRouter()

    def answered(jobs: list[Alignment], id: str, *, single: bool) -> AlignResponse:
        return AlignResponse(
            jobs,
            single=single,
            request_id=id,
            count_error=service.count_error,
            patience=service.patience,
        )

    @router.post(
        "/v1/align",
        summary="Review given answers",
        tags=["align"],
        openapi_extra=json_body(AlignBody),
    )
    async def align(request: Request) -> Response:
        raw = parse_object(await read_body(request, service.max_body_bytes))
        id = request_id_of(request.scope)
        if "items" not in raw:
            job = Alignment(service, raw, id, key=grant_of(request))
            return answered([job], id, single=True)
        items = validated(Batch, raw).items
        if len(items) > MAX_ITEMS:
            raise RequestError(
                f"Invalid value for 'items': {MAX_ITEMS} at most, and these are {len(items)}.",
                param="items",
                code="invalid_value",
            )
        jobs = [
            Alignment(service, item, f"{id}-{number}", f"items[{number}]", grant_of(request))
            for number, item in enumerate(items)
        ]
        return answered(jobs, id, single=False)

    return router


class Alignment:
    """One answer to be reviewed. `place`: where it stands in the request; `key`: what
    the client may do. Use once."""

    def __init__(
        self, service: Service, raw: Any, id: str, place: str = "", key: Key | None = None
    ) -> None:
        self._service = service
        self._raw = raw
        self._id = id
        self._place = place
        self._key = key

    async def run(self) -> dict[str, Any]:
        """The `alignment` object. Raises `ProxyError`."""
        try:
            return await self._run()
        except RequestError as error:
            if self._place:
                error.param = ".".join(filter(None, (self._place, error.param)))
            raise

    async def _run(self) -> dict[str, Any]:
        item = validated(AlignItem, self._raw)
        conversation = item.conversation()
        if self._key is not None and (item.model is not None or self._key.models == ()):
            self._key.check_model(item.model or "")
        # A route's name says whose aligner it is; without one, that of the first.
        treatment = (
            self._service.treatments[0]
            if item.model is None
            else self._service.treatment(item.model)
        )
        scope = _scope(item.scope, treatment)
        mode = Mode.WHOLE if scope == "whole" else Mode.STREAM
        if item.strength is not None:
            check_strength(item.strength, treatment.aligner.strengths, "strength")
        strength = treatment.rules.strength if item.strength is None else item.strength
        policy = treatment.policy(mode, strength)
        if scope == "whole" and len(item.answer) > policy.max_whole_chars:
            raise RequestError(
                f"Invalid value for 'answer': it has {len(item.answer)} characters, and as a whole "
                f"{policy.max_whole_chars} at most can be reviewed.",
                param="answer",
                code="invalid_value",
            )
        asked = ChatRequest(item.model or "", {}, conversation, request_id=self._id)
        treatment = treatment.for_reply(asked, mode, strength)
        session = Session(
            asked,
            upstream=GivenAnswer(item.answer),
            aligner=treatment.aligner,
            policy=policy,
            observer=self._service.observer,
            opening=Opening(
                mode,
                asked,
                "align",
                treatment.aligner_name,
                None if self._key is None else self._key.name,
                route=treatment.route,
            ),
        )
        reviewed = _Reviewed()
        finished = await session.run(reviewed)
        return {
            "id": f"align-{self._id}",
            "object": "alignment",
            "model": item.model,
            "aligner": treatment.aligner_name,
            "scope": scope,
            **reviewed.told(item.answer),
            **_spent(finished),
        }


class _Reviewed:
    """Collects what a session delivers. Implements `session.Reply`."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._sentences: list[dict[str, Any]] = []

    async def deliver(self, delivery: Delivery) -> None:
        self._texts.append(delivery.text)
        if (sentence := sentence_object(delivery)) is not None:
            del sentence["branch"]  # there is but one
            self._sentences.append(sentence)

    def told(self, answer: str) -> dict[str, Any]:
        text = "".join(self._texts)
        return {
            "text": text,
            "changed": text != answer,
            "ended": any(sentence["end"] for sentence in self._sentences),
            "sentences": self._sentences,
        }


def _scope(asked: Scope | None, treatment: Treatment) -> Scope:
    """What the request says, or what the route does, as far as the aligner can."""
    scopes = treatment.aligner.scopes
    if asked is None:
        wanted: Scope = "whole" if treatment.rules.mode is Mode.WHOLE else "sentence"
        return wanted if wanted in scopes else next(iter(scopes))
    if asked not in scopes:
        raise RequestError(
            f"The aligner '{treatment.aligner_name}' cannot review with scope '{asked}'.",
            param="scope",
            code="scope_not_available",
        )
    return asked


def _spent(finished: Finished) -> dict[str, Any]:
    """The aligner is the model here: its tokens are the usage."""
    cost = asdict(finished.cost)
    prompt, completion = cost["aligner_prompt_tokens"], cost["aligner_completion_tokens"]
    named = ("reviews", "reviews_in_vain", "corrections", "unreviewed", "skipped")
    return {
        "cost": {name: cost[name] for name in named},
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }
