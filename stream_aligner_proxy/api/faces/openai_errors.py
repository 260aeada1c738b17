"""Errors as OpenAI words them."""

from collections.abc import Mapping
from typing import Any

import orjson

from stream_aligner_proxy.core.errors import ProxyError

DONE = b"data: [DONE]\n\n"


class OpenAiErrors:
    """`{"error": {message, type, param, code}}`."""

    def body(self, error: ProxyError, request_id: str) -> Mapping[str, Any]:
        return error.body()

    def end(self, error: ProxyError, request_id: str) -> bytes:
        """One SSE event that SDKs raise as an API error.

        `[DONE]` follows it, as it does with vLLM: readers that wait for the marker end cleanly
        instead of taking the close for a lost connection and asking again. That the reply failed
        shows in the error itself and in the missing `finish_reason`.
        """
        return b"data: " + orjson.dumps(error.body()) + b"\n\n" + DONE
