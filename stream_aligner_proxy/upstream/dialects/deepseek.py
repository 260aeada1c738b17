"""DeepSeek's API. The base address must end in /beta; elsewhere `prefix` is a 400."""

from stream_aligner_proxy.upstream.dialects.record import ONLY_MAX_TOKENS, Dialect

DIALECT = Dialect(
    "deepseek",
    "DeepSeek",
    "`prefix: true` on the last message, base address /beta; continuation only; not with tools",
    message_fields={"prefix": True},
    limit_fields=ONLY_MAX_TOKENS,
)
