"""The routes of Anthropic's Messages API."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.faces.messages import MESSAGES
from stream_aligner_proxy.api.faces.messages_request import as_chat
from stream_aligner_proxy.api.faces.messages_schemas import MessagesBody
from stream_aligner_proxy.api.reading import read_body
from stream_aligner_proxy.api.replying import reply
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import RequestError

_SCHEMA_REF = "#/components/schemas/{model}"
_DOC: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _SCHEMA_REF.format(model="MessagesBody")}}
        },
    }
}


def messages_schemas() -> dict[str, Any]:
    """JSON schemas for the OpenAPI document."""
    schema = MessagesBody.model_json_schema(ref_template=_SCHEMA_REF)
    return {**schema.pop("$defs", {}), "MessagesBody": schema}


def messages_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/messages",
        summary="Create a message, as Anthropic's API does",
        tags=["messages"],
        openapi_extra=_DOC,
    )
    async def messages(request: Request) -> Response:
        raw, body = as_chat(await read_body(request, service.max_body_bytes))
        return await reply(service, request, raw, body, MESSAGES)

    @router.post("/v1/messages/count_tokens", include_in_schema=False)
    async def count_tokens() -> Response:
        # Only the upstream's own tokenizer could tell; a guess would be taken for a count.
        raise RequestError(
            "Tokens are not counted here: only the model's own server could tell. The usage of a "
            "message says what it took.",
            status=404,
        )

    return router
