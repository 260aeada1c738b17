"""What a dialect is: how one kind of upstream is spoken to. Quirks as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from stream_aligner_proxy.core.records import Way
from stream_aligner_proxy.upstream.templating import Prompts
from stream_aligner_proxy.upstream.wires import Wire

UsageOptions = Literal["none", "include", "continuous"]
# How thinking is asked for: Anthropic's object, or only OpenAI's `reasoning_effort`.
Thinking = Literal["object", "effort"]

# Both are needed (vLLM: one alone is a 400; with neither a partial message is closed, in silence).
# A reply that was thinking would think again in the middle of its own text.
CONTINUE_FINAL: Mapping[str, Any] = MappingProxyType(
    {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "chat_template_kwargs": MappingProxyType({"enable_thinking": False}),
    }
)
ONLY_MAX_TOKENS = ("max_tokens",)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of upstream is spoken to.

    `ways`: how it can be made to continue a text, best first; whatever is empty or exhausted is
    rewrite-only. `proven`: its documentation, or a measurement, says that the first of them works
    with every model; otherwise it must be seen (a probe, or a reply) before it is relied on.
    `message_fields` mark the partial message; `body_fields` go into the body of a continuation
    (mappings are merged into the client's, so that its other template arguments stay) and switch
    thinking off where that is a request field. `repeats_prefix`: the answer begins with the prefix.
    `usage`: what may be asked for in `stream_options`; "none" where the field is refused.
    `limit_fields`: the names understood for the token limit, the preferred one first.
    `thinking`: "effort" where a `thinking` object is refused as an unknown field.
    `models`: where only some are known to continue a partial message, what their names look like.
    `prompts`: what its `/completions` takes, for a chat template applied here; None: it has none.
    `wire`: the API it speaks, where that is not OpenAI's; `key_header`: where it wants the key.
    `says`: what it asks for and answers, for the table in the docs.
    """

    name: str
    title: str
    says: str
    ways: tuple[Way, ...] = ("prefill", "instruct")
    proven: bool = True
    message_fields: Mapping[str, Any] = field(default_factory=dict)
    body_fields: Mapping[str, Any] = field(default_factory=dict)
    repeats_prefix: bool = False
    usage: UsageOptions = "include"
    limit_fields: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    thinking: Thinking = "object"
    models: re.Pattern[str] | None = None
    prompts: Prompts | None = None
    wire: Wire | None = None
    key_header: str = "authorization"
