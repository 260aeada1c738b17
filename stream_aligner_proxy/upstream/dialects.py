"""Dialects: how each kind of upstream is asked to continue a partial reply. Quirks as data.

One record per dialect, in `DIALECTS`; a new upstream is a new record. Sources: the servers' own
documentation and source, and measurements on vLLM 0.32 and llama.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.upstream.wires import Wire, anthropic, gemini

UsageOptions = Literal["none", "include", "continuous"]

_NO_THINKING: Mapping[str, Any] = MappingProxyType({"enable_thinking": False})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of upstream is spoken to.

    `continues`: whether it can write on from a partial assistant message, sent as the last message.
    `message_fields` mark that message; `body_fields` go into the body (mappings are merged into the
    client's, so that its other template arguments stay). A reply that was thinking would think
    again in the middle of its own text, so `body_fields` also switch thinking off where that is a
    request field.
    `repeats_prefix`: the answer begins with the prefix, which must be dropped.
    `usage`: what may be asked for in `stream_options`; "none" where the field is refused.
    `limit_fields`: the names understood for the token limit, the preferred one first.
    `models`: where only some continue, what their names look like.
    `wire`: the API it speaks, where that is not OpenAI's; `key_header`: where it wants the key.
    """

    name: str
    continues: bool = True
    message_fields: Mapping[str, Any] = field(default_factory=dict)
    body_fields: Mapping[str, Any] = field(default_factory=dict)
    repeats_prefix: bool = False
    usage: UsageOptions = "include"
    limit_fields: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    models: re.Pattern[str] | None = None
    wire: Wire | None = None
    key_header: str = "authorization"


_CONTINUE_FINAL: Mapping[str, Any] = MappingProxyType(
    {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "chat_template_kwargs": _NO_THINKING,
    }
)
_ONLY_MAX_TOKENS = ("max_tokens",)

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect("vllm", body_fields=_CONTINUE_FINAL, usage="continuous"),
            # SGLang turns a trailing assistant message without the flag into a user message.
            Dialect("sglang", body_fields=_CONTINUE_FINAL, usage="continuous"),
            # With `true` llama.cpp answers prefix + new text; "content" answers new text alone.
            Dialect(
                "llamacpp", body_fields={**_CONTINUE_FINAL, "continue_final_message": "content"}
            ),
            # The base address must end in /beta; elsewhere `prefix` is a 400.
            Dialect("deepseek", message_fields={"prefix": True}, limit_fields=_ONLY_MAX_TOKENS),
            # Mistral refuses unknown fields (422), `stream_options` among them; it reports usage
            # unasked.
            Dialect(
                "mistral",
                message_fields={"prefix": True},
                repeats_prefix=True,
                usage="none",
                limit_fields=_ONLY_MAX_TOKENS,
            ),
            Dialect("kimi", message_fields={"partial": True}),
            # DashScope continues in non-thinking mode only.
            Dialect(
                "qwen",
                message_fields={"partial": True},
                body_fields={"enable_thinking": False},
                limit_fields=_ONLY_MAX_TOKENS,
            ),
            # A plain trailing assistant message is enough.
            Dialect("ollama", limit_fields=_ONLY_MAX_TOKENS),
            Dialect(
                "anthropic",
                models=re.compile(anthropic.PREFILL_MODELS),
                wire=anthropic.AnthropicWire(),
                key_header="x-api-key",
            ),
            Dialect(
                "gemini",
                models=re.compile(gemini.PREFILL_MODELS),
                wire=gemini.GeminiWire(),
                key_header="x-goog-api-key",
            ),
            # OpenAI accepts a trailing assistant message and starts the answer again.
            Dialect(
                "openai", continues=False, limit_fields=("max_completion_tokens", "max_tokens")
            ),
            Dialect("generic", continues=False),
        )
    }
)


def find_dialect(name: str, key: str = "dialect") -> Dialect:
    """The dialect called `name`; `key` is the configuration key that the error shall name."""
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise ConfigError(f"{key}: unknown dialect {name!r}; known: {', '.join(DIALECTS)}")
    return dialect
