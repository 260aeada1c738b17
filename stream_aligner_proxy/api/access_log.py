"""One log line for every request that has been answered, with what became of its replies.

Nothing is done per chunk: the status is noted by `request_id`, the rest by `observers.replies`.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from stream_aligner_proxy.api.reading import KEY
from stream_aligner_proxy.api.request_id import STATUS, request_id_of
from stream_aligner_proxy.observers.replies import Record, Told, current

_log = logging.getLogger("stream_aligner_proxy.access")
_PREFIX = "/v1/"
_PATH_CHARS = 200
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


class AccessLog:
    """Middleware, inside `RequestId`. Requests to the API are told at level `info`, health checks
    and the like at `debug`."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = self._clock()
        told = Told(request_id_of(scope))
        token = current.set(told)
        status: int | None = 500  # what is answered to an exception, outside of here
        try:
            await self._app(scope, receive, send)
            status = scope.get(STATUS)
        finally:
            level = logging.INFO if scope["path"].startswith(_PREFIX) else logging.DEBUG
            if _log.isEnabledFor(level):
                fields = _fields(scope, told, status, self._clock() - begun)
                _log.log(level, "answered", extra={"fields": fields})
            current.reset(token)


def _fields(scope: Scope, told: Told, status: int | None, seconds: float) -> dict[str, Any]:
    replies = told.replies
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"][:_PATH_CHARS],
        "status": status,
        "seconds": round(seconds, 4),
    }
    if replies:
        fields |= _of_replies(replies)
    else:  # refused before one began, or an answer without one, such as a list of models
        fields |= {"outcome": told.error, "key": scope.get(KEY)}
    fields["trace_id"] = told.trace_id or (_trace_of(replies[0]) if replies else None)
    return fields


def _of_replies(replies: Sequence[Record]) -> dict[str, Any]:
    """The choices of a request together."""
    first = replies[0]
    times = [one.first_text_seconds for one in replies if one.first_text_seconds is not None]
    # What failed first is what the client was told, and it ended the others.
    ended = [one.outcome for one in replies if one.outcome != "finished"]
    failed = [outcome for outcome in ended if outcome not in ("cancelled", None)]
    costs = [one.cost for one in replies]
    usages = [one.finished.usage for one in replies if one.finished and one.finished.usage]
    return {
        "mode": str(first.opening.mode),
        "route": first.opening.route,
        "model": first.model,
        "upstream": first.upstream,
        "outcome": (failed or ended or ["finished"])[0],
        "stream": first.opening.streamed,
        "first_text_seconds": round(min(times), 4) if times else None,
        "replies": len(replies) if len(replies) > 1 else None,
        "corrections": sum(cost.corrections for cost in costs),
        "branches": sum(cost.branches for cost in costs),
        "unreviewed": sum(cost.unreviewed for cost in costs) or None,
        "completion_tokens": sum(usage.completion_tokens for usage in usages) if usages else None,
        "discarded_tokens": sum(cost.discarded_tokens for cost in costs),
        "key": first.opening.key,
        **first.content(),
    }


def _trace_of(reply: Record) -> str | None:
    """That of the client's own trace."""
    found = _TRACEPARENT.fullmatch(reply.opening.request.headers.get("traceparent", ""))
    return found[1] if found else None
