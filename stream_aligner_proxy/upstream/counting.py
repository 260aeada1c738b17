"""How many tokens a conversation has, as the model's own server counts them.

Counted is what a reply's first request would be: the native APIs have an address for it, and vLLM
renders the chat template on `/tokenize`. Nothing is estimated: it would be taken for a count.
"""

from typing import Any

import orjson
from yarl import URL

from stream_aligner_proxy.core.errors import RequestError, UpstreamGarbled, UpstreamRejected
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.chunks import parse_object
from stream_aligner_proxy.upstream.dialects import Dialect
from stream_aligner_proxy.upstream.endpoint import Endpoint
from stream_aligner_proxy.upstream.streams import MAX_BODY_BYTES
from stream_aligner_proxy.upstream.tokenizing import tokenize_body

# What a server without such an address answers.
NO_SUCH_PATH = (404, 405, 501)


def can_count(dialect: Dialect) -> bool:
    return dialect.wire is not None or "ids" in dialect.ways


def tokenize_url(endpoint: Endpoint) -> URL:
    """`/tokenize` is beside the API, not below it."""
    base = endpoint.base
    return (base.parent if base.name == "v1" else base) / "tokenize"


async def count_tokens(endpoint: Endpoint, dialect: Dialect, request: ChatRequest) -> int:
    """Of what `request` would send. Raises `UpstreamError`, and `RequestError` for what cannot be
    sent or where the server does not count after all."""
    wire = dialect.wire
    if wire is None:
        url, body = tokenize_url(endpoint), tokenize_body(request.body, continues=False)
    else:
        path, body = wire.counting(request.body)
        url = endpoint.below(path)
    headers, refusals = endpoint.headers(request.headers, request.request_id, stream=False)
    async with endpoint.post(orjson.dumps(body), headers, url) as exchange:
        try:
            await endpoint.answer(exchange, refusals)
        except UpstreamRejected as error:
            if wire is not None or error.status not in NO_SUCH_PATH:
                raise
            raise cannot_count(request.model, f"its /tokenize answered {error.status}") from error
        answer = parse_object(await exchange.read_all(MAX_BODY_BYTES))
    count: Any = answer.get("count") if wire is None else wire.counted(answer)
    if not isinstance(count, int):
        raise UpstreamGarbled(f"upstream {endpoint.name!r} counted tokens and told no number")
    return count


def cannot_count(model: str, why: str) -> RequestError:
    return RequestError(
        f"The upstream of the model '{model}' does not count tokens ({why}). The usage of a "
        "message says what it took.",
        status=404,
        param="model",
        code="unsupported_by_upstream",
    )
