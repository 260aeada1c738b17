"""Counting the tokens of a message before it is sent, in Anthropic's words.

Only the model's own server can tell, so it is asked; nothing is written or reviewed.
"""

from collections.abc import Callable

import orjson
from fastapi import Request
from starlette.responses import Response

from stream_aligner_proxy.api.faces.messages_errors import AnthropicErrors
from stream_aligner_proxy.api.faces.messages_request import as_counted_chat
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.reading import forwarded, grant_of, read_body
from stream_aligner_proxy.api.request_id import request_id_of
from stream_aligner_proxy.api.response import HttpOut, WatchedResponse
from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.errors import ProxyError
from stream_aligner_proxy.core.records import ChatRequest, Turn
from stream_aligner_proxy.upstream.routing.lease import Lease


async def counted(service: Service, request: Request) -> Response:
    """The answer to a request to count. Raises `ProxyError`."""
    chat = as_counted_chat(await read_body(request, service.max_body_bytes))
    service.check_messages(len(chat["messages"]))
    if (grant := grant_of(request)) is not None:
        grant.check_model(chat["model"])
    id = request_id_of(request.scope)
    # No conversation to be kept together: each goes where the weights let it.
    asked = ChatRequest(
        chat["model"], chat, (Turn("user", id),), headers=forwarded(request), request_id=id
    )
    return CountResponse(
        await service.lease(asked),
        request_id=id,
        count_error=service.count_error,
        patience=service.patience,
    )


class CountResponse(WatchedResponse):
    def __init__(
        self,
        upstream: Lease,
        *,
        request_id: str,
        count_error: Callable[[ProxyError], None],
        patience: Patience,
    ) -> None:
        super().__init__(
            request_id=request_id,
            headers=dict,
            count_error=count_error,
            shape=AnthropicErrors(),
            patience=patience,
        )
        self._upstream = upstream

    async def write_to(self, out: HttpOut) -> None:
        await out.whole(orjson.dumps({"input_tokens": await self._upstream.count_tokens()}))
