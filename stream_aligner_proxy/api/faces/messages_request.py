"""A request to Anthropic's Messages API as a chat request. Pure."""

from typing import Any, TypeVar

from stream_aligner_proxy.api.faces.messages_errors import bad
from stream_aligner_proxy.api.faces.messages_schemas import (
    CountTokensBody,
    MessagesBody,
    OutputFormat,
    Tool,
    ToolChoice,
    read,
)
from stream_aligner_proxy.api.faces.messages_turns import chat_messages
from stream_aligner_proxy.api.schemas import EXTENSION, ChatBody, parse_object, validated
from stream_aligner_proxy.upstream.wires.anthropic_words import TOOL_CHOICES

# Said otherwise in a chat, or not at all: an upstream has no use for them as they are.
_TAKEN = frozenset(MessagesBody.model_fields) | {"cache_control"}
_AS_THEY_ARE = ("model", "stream", "temperature", "top_p", "top_k", "thinking", "stream_aligner")
# Of Anthropic's own servers: to leave them out would change what the reply is.
_REFUSED = {
    "container": "there are no containers here",
    "mcp_servers": "the servers of a request are not asked here: give their tools as tools",
    "context_management": "what a conversation holds is not edited here",
}
_TIERS = {"standard_only": "default"}
_CHOICES = {theirs: ours for ours, theirs in TOOL_CHOICES.items()}
_EFFORTS = {"max": "xhigh"}
_Body = TypeVar("_Body", bound=CountTokensBody)


def as_chat(raw: bytes) -> tuple[dict[str, Any], ChatBody]:
    """The chat body as an upstream shall see it, and what is read of it. Raises `RequestError`.

    The limit is only in the second: upstreams call it by two names, and each is told it by the one
    that it knows.
    """
    body = parse_object(raw)
    asked = _read(MessagesBody, body)
    chat = _chat(body, asked)
    return chat, validated(ChatBody, {**chat, "max_tokens": asked.max_tokens})


def as_counted_chat(raw: bytes) -> dict[str, Any]:
    """The same of a request to count its tokens. Raises `RequestError`."""
    body = parse_object(raw)
    chat = _chat(body, _read(CountTokensBody, body))
    validated(ChatBody, chat)
    chat.pop(EXTENSION, None)
    return chat


def _read(kind: type[_Body], body: dict[str, Any]) -> _Body:
    for name, why in _REFUSED.items():
        if body.get(name) is not None:
            raise bad(name, why)
    if body.get("n") not in (None, 1):
        raise bad("n", "a message is one reply; ask for others by themselves")
    return read(kind, body)


def _chat(body: dict[str, Any], asked: CountTokensBody) -> dict[str, Any]:
    chat = {name: value for name, value in body.items() if name not in _TAKEN | set(_REFUSED)}
    chat |= {name: body[name] for name in _AS_THEY_ARE if body.get(name) is not None}
    chat["messages"] = chat_messages(body.get("system"), body["messages"])
    if stops := [stop for stop in asked.stop_sequences or () if stop]:
        chat["stop"] = stops
    if asked.tools:
        chat["tools"] = [_tool(tool, i) for i, tool in enumerate(asked.tools)]
    if asked.tool_choice is not None:
        chat |= _tool_choice(asked.tool_choice)
    if asked.metadata is not None and asked.metadata.user_id:
        chat["user"] = asked.metadata.user_id
    if asked.service_tier is not None:
        chat["service_tier"] = _TIERS.get(asked.service_tier, asked.service_tier)
    chat |= _output(asked)
    return chat


def _tool(tool: Tool, number: int) -> dict[str, Any]:
    if tool.input_schema is None:
        raise bad(f"tools.{number}.input_schema", "Field required")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    kind: Any = _CHOICES[choice.type]
    if kind == "named":
        if not choice.name:
            raise bad("tool_choice.name", "Field required")
        kind = {"type": "function", "function": {"name": choice.name}}
    chat = {"tool_choice": kind}
    if choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False
    return chat


def _output(asked: CountTokensBody) -> dict[str, Any]:
    """How much to think and which format to keep; `output_format` is the older name of this."""
    chat: dict[str, Any] = {}
    wanted: OutputFormat | None = asked.output_format
    if asked.output_config is not None:
        wanted = asked.output_config.format or wanted
        if effort := asked.output_config.effort:
            chat["reasoning_effort"] = _EFFORTS.get(effort, effort)
    if wanted is not None:
        # Anthropic promises that the schema is kept, which a chat does when it is told to.
        schema = {"name": "output", "schema": wanted.json_schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat
