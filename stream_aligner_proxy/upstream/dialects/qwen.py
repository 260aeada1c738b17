"""Qwen on DashScope. It continues in non-thinking mode only."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "qwen",
    "Qwen (DashScope)",
    "`partial: true` on the last message, `enable_thinking: false`; continuation only",
    message_fields={"partial": True},
    body_fields={"enable_thinking": False},
    limit_fields=ONLY_MAX_TOKENS,
)
