"""Dialects: how each kind of upstream is asked to continue a partial reply. One small file each.

A new upstream is a new file with a record, named in `_ALL`. Sources: the servers' own documentation
and source, and measurements on real servers where there were any (docs/upstreams.md).
"""

from collections.abc import Mapping
from types import MappingProxyType

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.upstream.dialects import (
    anthropic,
    azure,
    bedrock,
    deepseek,
    fireworks,
    gemini,
    gemini_openai,
    generic,
    groq,
    kimi,
    llamacpp,
    lmstudio,
    mistral,
    ollama,
    openai,
    openrouter,
    qwen,
    sglang,
    tgi,
    together,
    transformers,
    vllm,
)
from stream_aligner_proxy.upstream.dialects.record import Dialect

__all__ = ["DIALECTS", "Dialect", "find_dialect"]

_ALL = (
    vllm,
    sglang,
    llamacpp,
    ollama,
    tgi,
    lmstudio,
    transformers,
    deepseek,
    mistral,
    kimi,
    qwen,
    openrouter,
    groq,
    together,
    fireworks,
    gemini_openai,
    gemini,
    anthropic,
    bedrock,
    azure,
    openai,
    generic,
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {module.DIALECT.name: module.DIALECT for module in _ALL}
)


def find_dialect(name: str, key: str = "dialect") -> Dialect:
    """The dialect called `name`; `key` is the configuration key that the error shall name."""
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise ConfigError(f"{key}: unknown dialect {name!r}; known: {', '.join(DIALECTS)}")
    return dialect
