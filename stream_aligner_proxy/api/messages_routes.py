"""The routes of Anthropic's Messages API."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.messages import MESSAGES
from stream_aligner_proxy.api.faces.messages_request import as_chat
from stream_aligner_proxy.api.faces.messages_schemas import MessagesBody
from stream_aligner_proxy.api.reading import read_body
from stream_aligner_proxy.api.replying import reply
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import RequestError


def messages_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/messages",
        summary="Create a message, as Anthropic's API does",
        tags=["messages"],
        openapi_extra=json_body(MessagesBody),
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
