"""Requests of the embedded upstream, checked. What it cannot do is refused, never ignored.

`continue_final_message` and `add_generation_prompt` mean what they mean to vLLM: the first alone is
an error, because the second is true unless it is said not to be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stream_aligner_proxy.core.errors import ModelNotFound, RequestError
from stream_aligner_proxy.demo.chat_tokens import ChatTokens
from stream_aligner_proxy.demo.engine import Sampling

_REFUSED = (
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "suffix",
    "echo",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One generation: the prompt's ids, and how to answer."""

    prompt: Sequence[int]
    sampling: Sampling
    stream: bool
    include_usage: bool
    continuous_usage: bool


def read(body: Any, tokens: ChatTokens, *, model: str, context: int, chat: bool) -> Asked:
    """Check a request of either kind. Raises `RequestError`."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    if body.get("model") not in (None, model):
        raise ModelNotFound(f"the model {body['model']!r} does not exist", param="model")
    for name in _REFUSED:
        if body.get(name):
            raise RequestError(f"{name} is not supported by this server", param=name)
    if body.get("n") not in (None, 1):
        raise RequestError("n must be 1", param="n")
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type", "text") != "text":
        raise RequestError("only text can be asked for", param="response_format")
    prompt = chat_prompt(body, tokens) if chat else text_prompt(body, tokens)
    if len(prompt) >= context:
        raise RequestError(
            f"This model's maximum context length is {context} tokens. However, your messages "
            f"resulted in {len(prompt)} tokens.",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise RequestError("stream_options must be an object", param="stream_options")
    return Asked(
        prompt,
        _sampling(body, context - len(prompt), default=None if chat else 16),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
    )


def chat_prompt(body: Mapping[str, Any], tokens: ChatTokens) -> list[int]:
    """The ids of `messages`. Raises `RequestError`."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list that is not empty", param="messages")
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    carry_on = bool(body.get("continue_final_message", False))
    prompt = bool(body.get("add_generation_prompt", True))
    if carry_on and prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    return tokens.render(turns, add_generation_prompt=prompt, continue_final_message=carry_on)


def text_prompt(body: Mapping[str, Any], tokens: ChatTokens) -> list[int]:
    """The ids of `prompt`, text or ids. Raw text may hold special tokens: it is the client's own
    rendering of the template. Raises `RequestError`."""
    prompt = body.get("prompt")
    if isinstance(prompt, str) and prompt:
        return tokens.encode(prompt, control=True)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        if not all(0 <= token < tokens.size for token in prompt):
            raise RequestError("prompt holds ids outside the vocabulary", param="prompt")
        return prompt
    raise RequestError("prompt must be a text or a list of ids, not empty", param="prompt")


def _turn(message: Any, param: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestError(f"{param} must be an object with a role", param=param)
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        content = "".join(known) if len(known) == len(texts) else None
    if not isinstance(content, str):
        raise RequestError(f"{param}.content must be text", param=f"{param}.content")
    # The newer name of the same role.
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": content}


def _sampling(body: Mapping[str, Any], room: int, default: int | None) -> Sampling:
    """A limit beyond the context is lowered to it without a word, as vLLM does."""
    limit = _number(body, "max_completion_tokens", 1, None, whole=True)
    if limit is None:
        limit = _number(body, "max_tokens", 1, None, whole=True)
    temperature = _number(body, "temperature", 0, 2)
    top_p = _number(body, "top_p", 0, 1)
    if top_p == 0:
        raise RequestError("top_p must be above 0", param="top_p")
    seed = _number(body, "seed", None, None, whole=True)
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise RequestError("stop must be a text or a list of texts", param="stop")
    wanted = default if limit is None else int(limit)
    return Sampling(
        max_tokens=room if wanted is None else min(wanted, room),
        temperature=1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
        seed=None if seed is None else int(seed),
        stop=tuple(stops),
    )


def _number(
    body: Mapping[str, Any], name: str, low: int | None, high: int | None, *, whole: bool = False
) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise RequestError(f"{name} must be {'an integer' if whole else 'a number'}", param=name)
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name} must be {bounds}", param=name)
    return value
