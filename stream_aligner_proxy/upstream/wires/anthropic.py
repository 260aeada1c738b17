"""The wire of Anthropic's Messages API: an OpenAI chat body as one of its own, and back.

What its models differ in is data here. Sources: Anthropic's API reference (Messages, Models,
versioning), its migration guide (4.6: no prefill; 4.7: no sampling parameters), its pages on
structured outputs and model limits; the API's own errors, as users reported them, for what the
reference leaves out (one of `temperature` and `top_p` since Opus 4.1, stop sequences of white
space, white space at the end of a prefill).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.wires.anthropic_events import AnthropicReader
from stream_aligner_proxy.upstream.wires.anthropic_messages import continuing, translate
from stream_aligner_proxy.upstream.wires.anthropic_words import TOOL_CHOICES
from stream_aligner_proxy.upstream.wires.openai_body import (
    check_fields,
    functions_of,
    json_schema_of,
    refusal,
    stop_strings,
    token_limit,
    tool_mode,
)

VERSION = "2023-06-01"
# The API wants a limit with every request; OpenAI's has none. Every model takes this much.
DEFAULT_MAX_TOKENS = 8192
_DEFAULT_MAX_TOKENS_OF_FIRST = 4096

# The old models; what comes later is taken to behave like the newest. Other servers that speak this
# API take the sampling parameters.
_UP_TO_4_0 = r"claude-(?:instant|2|3)|claude-(?:opus|sonnet)-4(?:[-.]0)?(?!\d|[-.]\d{1,2}(?!\d))"
_UP_TO_4_5 = r"claude-(?:instant|2|3)|claude-[a-z]+-4(?:[-.][0-5])?(?!\d|[-.]\d{1,2}(?!\d))"
_UP_TO_4_6 = r"claude-(?:instant|2|3)|claude-[a-z]+-4(?:[-.][0-6])?(?!\d|[-.]\d{1,2}(?!\d))"
_SHORT_REPLIES = re.compile(r"claude-(?:instant|2|3-(?:opus|sonnet|haiku))")
_NOT_CLAUDE = r"^(?!.*claude-)"
_TWO_SAMPLERS = re.compile(f"{_UP_TO_4_0}|{_NOT_CLAUDE}")
_SAMPLERS = re.compile(f"{_UP_TO_4_6}|{_NOT_CLAUDE}")
# Which models write on from a partial assistant turn; the others answer it with a 400.
PREFILL_MODELS = _UP_TO_4_5

# Fields of this API's own that a client may send as they are.
_NATIVE = frozenset(("thinking", "top_k"))
# What `count_tokens` takes of a message's fields; any other is a 400 there.
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config")


class AnthropicWire:
    """Implements `Wire`."""

    relays = False
    headers: Mapping[str, str] = MappingProxyType({"anthropic-version": VERSION})
    models_path = "models?limit=1000"  # the default is 20

    def path(self, body: Mapping[str, Any]) -> str:
        """The same for every model."""
        return "messages"

    def branch(
        self, body: Mapping[str, Any], dialect: object, *, prefix: str = "", max_tokens: int | None
    ) -> dict[str, Any]:
        """`body` as one branch sends it. Raises `RequestError`."""
        check_fields(body, _NATIVE, "Anthropic's Messages API")
        model = body["model"]
        system, turns = translate(body["messages"])
        sent: dict[str, Any] = {
            "model": model,
            "max_tokens": token_limit(body, max_tokens) or _default_limit(model),
            "messages": continuing(turns, prefix) if prefix.strip() else turns,
            "stream": True,
        }
        if system:
            sent["system"] = system
        if stops := stop_strings(body):
            if not all(stop.strip() for stop in stops):
                raise refusal("stop", "must hold more than white space for this upstream")
            sent["stop_sequences"] = stops
        if user := body.get("safety_identifier") or body.get("user"):
            sent["metadata"] = {"user_id": str(user)}
        sent |= _sampling(body, model)
        sent |= _tools(body)
        if body.get("thinking") is not None and not prefix:
            # In the middle of a reply there is nothing to think about: it would think again.
            sent["thinking"] = body["thinking"]
        sent |= _format(body)
        return sent

    def reader(self, refusals: Refusals) -> AnthropicReader:
        return AnthropicReader(refusals)

    def counting(self, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        sent = self.branch(body, None, max_tokens=None)
        return "messages/count_tokens", {name: sent[name] for name in _COUNTED if name in sent}

    def counted(self, answer: Mapping[str, Any]) -> object:
        return answer.get("input_tokens")

    def models(self, answer: Mapping[str, Any]) -> object:
        """The list in an answer to `models_path`: its entries have OpenAI's `id` already."""
        return answer.get("data")


def _default_limit(model: str) -> int:
    return _DEFAULT_MAX_TOKENS_OF_FIRST if _SHORT_REPLIES.search(model) else DEFAULT_MAX_TOKENS


def _sampling(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Temperature (0 to 1 there) and top_p, as far as the model takes them."""
    if not _SAMPLERS.search(model):
        return {}
    sent: dict[str, Any] = {}
    if (temperature := body.get("temperature")) is not None:
        if not isinstance(temperature, int | float):
            raise refusal("temperature", "must be a number")
        sent["temperature"] = min(temperature, 1)
    if body.get("top_p") is not None and ("temperature" not in sent or _TWO_SAMPLERS.search(model)):
        sent["top_p"] = body["top_p"]
    if body.get("top_k") is not None:
        sent["top_k"] = body["top_k"]
    return sent


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    functions = functions_of(body)
    if not functions:
        return {}
    tools = []
    for function in functions:
        tool: dict[str, Any] = {
            "name": function.name,
            "input_schema": function.parameters or {"type": "object", "properties": {}},
        }
        if function.description:
            tool["description"] = function.description
        if function.strict:
            tool["strict"] = True
        tools.append(tool)
    sent: dict[str, Any] = {"tools": tools}
    one_at_a_time = body.get("parallel_tool_calls") is False
    mode = tool_mode(body)
    if mode is None and not one_at_a_time:
        return sent
    kind, name = mode or ("auto", "")
    choice: dict[str, Any] = {"type": TOOL_CHOICES[kind]}
    if name:
        choice["name"] = name
    if one_at_a_time and kind != "none":
        choice["disable_parallel_tool_use"] = True
    return {**sent, "tool_choice": choice}


def _format(body: Mapping[str, Any]) -> dict[str, Any]:
    if (schema := json_schema_of(body)) is not None:
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object":
        raise refusal("response_format", "must be a 'json_schema' for this upstream")
    return {}
