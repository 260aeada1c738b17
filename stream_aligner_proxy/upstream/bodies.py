"""Request bodies for the upstream: the client's, with what a branch adds. Pure."""

from collections.abc import Mapping
from typing import Any

from stream_aligner_proxy.upstream.dialects import Dialect
from stream_aligner_proxy.upstream.wires.openai_body import effort_of

# Grammars start again at every request, so a continuation would begin a second object.
_GRAMMARS = (
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "regex",
    "ebnf",
)
_LIMITS = ("max_tokens", "max_completion_tokens")
# Not for a continuation: a least length would be asked for once more, and is refused above what is
# left of the limit; an echo would bring the prefix back; an id (vLLM's, SGLang's) is taken until
# the closed branch is gone; a prediction is one of the whole reply, and what does not come true is
# charged.
_FIRST_ONLY = ("min_tokens", "echo", "request_id", "rid", "prediction")


# Of a text completion; a chat knows them not, or otherwise.
_PROMPTS_ONLY = frozenset(("prompt", "echo", "suffix", "best_of", "logprobs"))

# Told to an upstream that cannot be given a partial message.
_GO_ON = (
    "Your last message was cut off. It ends with:\n\n{end}\n\nContinue it from exactly there. "
    "Write only what comes next: repeat nothing of it, do not begin again, and do not speak about "
    "this request."
)
_QUOTED_CHARS = 200


def may_continue(body: Mapping[str, Any]) -> bool:
    """Whether a reply to `body` can be continued from a given prefix, whatever the upstream.

    Not with tools, functions or a forced JSON or grammar format: no upstream was seen to do both.
    Not where the client itself ends with an assistant message: whether it means a turn to be
    continued or a closed one depends on its own flags and on the upstream's template, and adding a
    second assistant message after it would change what it asked for.
    """
    if body.get("tools") or body.get("functions"):
        return False
    if any(body.get(name) for name in _GRAMMARS):
        return False
    response_format = body.get("response_format")
    if isinstance(response_format, Mapping) and response_format.get("type", "text") != "text":
        return False
    messages = body.get("messages") or []
    return len(messages) > 0 and messages[-1].get("role") != "assistant"


def branch_body(
    body: Mapping[str, Any], dialect: Dialect, *, prefix: str = "", max_tokens: int | None = None
) -> dict[str, Any]:
    """`body` as one branch sends it: streamed, limited, continuing `prefix`."""
    sent: dict[str, Any] = {**body, "stream": True}
    if dialect.usage != "none":
        sent["stream_options"] = {"include_usage": True}
        if dialect.usage == "continuous":
            sent["stream_options"]["continuous_usage_stats"] = True
    _limit(sent, dialect, max_tokens)
    if dialect.thinking == "effort" and "thinking" in sent:
        effort = effort_of(sent.pop("thinking"))
        if effort is not None:
            sent.setdefault("reasoning_effort", effort)
    if prefix:
        for name in _FIRST_ONLY:
            sent.pop(name, None)
        last = {"role": "assistant", "content": prefix, **dialect.message_fields}
        sent["messages"] = [*body["messages"], last]
        for name, value in dialect.body_fields.items():
            theirs = sent.get(name)
            if isinstance(value, Mapping):
                sent[name] = {**theirs, **value} if isinstance(theirs, Mapping) else dict(value)
            else:
                sent[name] = value
    return sent


def is_prompt(body: Mapping[str, Any]) -> bool:
    """Whether this is a request for a plain text completion, with one `prompt`, a text."""
    return "messages" not in body


def prompt_body(
    body: Mapping[str, Any], dialect: Dialect, *, prefix: str = "", max_tokens: int | None = None
) -> dict[str, Any]:
    """A text completion as one branch sends it: what is written already belongs to the prompt."""
    sent = branch_body(body, dialect)
    if prefix:
        for name in _FIRST_ONLY:
            sent.pop(name, None)
        sent["prompt"] = body["prompt"] + prefix
    if max_tokens is not None:
        sent["max_tokens"] = max_tokens
    return sent


def as_chat(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A text completion for an upstream that only chats: the prompt is what the user says."""
    if not is_prompt(body):
        return body
    kept = {name: value for name, value in body.items() if name not in _PROMPTS_ONLY}
    return {**kept, "messages": [{"role": "user", "content": body["prompt"]}]}


def choices_of(body: Mapping[str, Any]) -> int:
    """How many replies a request asks for: `n` to each of its prompts."""
    prompt, n = body.get("prompt"), body.get("n")
    prompts = 1
    if is_prompt(body) and isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    return (n if isinstance(n, int) else 1) * prompts


def told_to_go_on(body: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`body` with the text so far as a message of the assistant's, and the request to go on."""
    end = prefix[-_QUOTED_CHARS:]
    if len(end) < len(prefix):
        end = end[end.find(" ") + 1 :]
    told = [
        {"role": "assistant", "content": prefix},
        {"role": "user", "content": _GO_ON.format(end=end)},
    ]
    kept = {name: value for name, value in body.items() if name not in _FIRST_ONLY}
    return {**kept, "messages": [*body["messages"], *told]}


def _limit(sent: dict[str, Any], dialect: Dialect, max_tokens: int | None) -> None:
    """Put the limit under the name that the client used, if the dialect knows it."""
    used = [name for name in _LIMITS if sent.get(name) is not None]
    known = [name for name in used if name in dialect.limit_fields]
    if max_tokens is None:
        if not used or known:
            return
        max_tokens = sent[used[0]]
    for name in _LIMITS:
        sent.pop(name, None)
    for name in known or dialect.limit_fields[:1]:
        sent[name] = max_tokens
