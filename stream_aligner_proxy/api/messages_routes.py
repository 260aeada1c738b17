"""The routes of Anthropic's Messages API."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.counting import counted
from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.messages import MESSAGES
from stream_aligner_proxy.api.faces.messages_request import as_chat
from stream_aligner_proxy.api.faces.messages_schemas import MessagesBody
from stream_aligner_proxy.api.reading import read_body
from stream_aligner_proxy.api.replying import reply
from stream_aligner_proxy.api.service import Service

# Any message will do; it is described there, and here the limit may be missing.
_COUNTED = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"model": {"type": "string"}, "messages": {"type": "array"}},
                    "required": ["model", "messages"],
                }
            }
        },
    }
}


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

    @router.post(
        "/v1/messages/count_tokens",
        summary="Count a message's input tokens, as Anthropic's API does",
        tags=["messages"],
        openapi_extra=_COUNTED,
    )
    async def count_tokens(request: Request) -> Response:
        return await counted(service, request)

    return router
