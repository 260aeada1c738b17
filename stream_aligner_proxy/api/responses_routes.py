"""The routes of OpenAI's Responses API."""

import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from stream_aligner_proxy.api.documenting import json_body
from stream_aligner_proxy.api.faces.responses import face_of
from stream_aligner_proxy.api.faces.responses_input import items_of
from stream_aligner_proxy.api.faces.responses_listing import listed, page
from stream_aligner_proxy.api.faces.responses_object import Asked, told
from stream_aligner_proxy.api.faces.responses_request import as_chat
from stream_aligner_proxy.api.faces.responses_schemas import ResponsesBody, read, unsupported
from stream_aligner_proxy.api.reading import key_of, read_body
from stream_aligner_proxy.api.replying import reply
from stream_aligner_proxy.api.response_store import Kept, ResponseStore, owner_of
from stream_aligner_proxy.api.schemas import ChatBody, parse_object, validated
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import RequestError

_LIST_DOC: dict[str, Any] = {
    "parameters": [
        {
            "name": "limit",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        },
        {
            "name": "order",
            "in": "query",
            "schema": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
        },
        {"name": "after", "in": "query", "schema": {"type": "string"}},
    ]
}


def responses_routes(service: Service, store: ResponseStore) -> APIRouter:
    """The routes over one service; finished responses are kept in `store`."""
    router = APIRouter(tags=["responses"])

    @router.post(
        "/v1/responses", summary="Create a response", openapi_extra=json_body(ResponsesBody)
    )
    async def create(request: Request) -> Response:
        raw = parse_object(await read_body(request, service.max_body_bytes))
        body = read(raw)
        owner = _owner(request)
        history: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            history = _previous(owner, body.previous_response_id).conversation()
        items = items_of(body.input)
        chat = as_chat(raw, body, history, items)
        keeps = store.keeps and body.store is not False
        asked = Asked(
            key=uuid.uuid4().hex,
            created_at=int(time.time()),
            told=told(body, kept=keeps),
            obfuscated=bool(body.stream_options and body.stream_options.include_obfuscation),
        )

        def keep(response: Mapping[str, Any]) -> None:
            if keeps:
                store.put(owner, response, history + listed(items, asked.key))

        checked = validated(ChatBody, chat)
        return await reply(service, request, chat, checked, face_of(asked, keep))

    @router.get("/v1/responses/{response_id}", summary="A response that was kept")
    async def retrieve(request: Request, response_id: str) -> Response:
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            unsupported("stream", "a response that was kept is given whole")
        return _json(_kept(request, response_id).response)

    @router.delete("/v1/responses/{response_id}", summary="Forget a response")
    async def delete(request: Request, response_id: str) -> Response:
        _kept(request, response_id)
        store.delete(_owner(request), response_id)
        gone = {"id": response_id, "object": "response", "deleted": True}
        return _json(orjson.dumps(gone))

    @router.get(
        "/v1/responses/{response_id}/input_items",
        summary="The items that a response answered",
        openapi_extra=_LIST_DOC,
    )
    async def input_items(request: Request, response_id: str) -> Response:
        kept = _kept(request, response_id)
        return _json(orjson.dumps(page(orjson.loads(kept.items), request.query_params)))

    def _previous(owner: bytes, response_id: str) -> Kept:
        kept = store.get(owner, response_id)
        if kept is None:
            raise RequestError(
                f"No such previous response. {_why(store)}; send the items of the conversation as "
                "'input' instead.",
                status=404,
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return kept

    def _kept(request: Request, response_id: str) -> Kept:
        kept = store.get(_owner(request), response_id)
        if kept is None:
            raise RequestError(
                f"No such response. {_why(store)}.",
                status=404,
                code="response_not_found",
                param="response_id",
            )
        return kept

    return router


def _why(store: ResponseStore) -> str:
    if not store.keeps:
        return "This server keeps no responses (server.response_store_bytes is 0)"
    return (
        "Responses are kept in the memory of one process, for the key that made them, the latest "
        "ones only, and not with 'store': false"
    )


def _owner(request: Request) -> bytes:
    return owner_of(request.headers.get("authorization"), key_of(request))


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json")
