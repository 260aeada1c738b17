"""What the scripted upstream says beside its text, as the deltas of a stream. Pure: no I/O."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from stream_aligner_proxy.demo.script import Rule, tokens

Delta = dict[str, Any]


def before_text(rule: Rule) -> Iterator[Delta]:
    for piece in _cut(rule, rule.reasoning):
        yield {"reasoning_content": piece}


def after_text(rule: Rule) -> Iterator[Delta]:
    for piece in _cut(rule, rule.refusal):
        yield {"refusal": piece}
    if rule.function_call is not None:
        for called in _call(rule, rule.function_call):
            yield {"function_call": called}
    # Calls made in parallel take turns.
    calls = [list(_tool_call(rule, i, call)) for i, call in enumerate(rule.tool_calls)]
    for turn in zip_longest(*calls):
        for delta in turn:
            if delta is not None:
                yield {"tool_calls": [delta]}


def message(rule: Rule, text: str) -> dict[str, Any]:
    """All of it as the message of a reply that is not streamed."""
    found: dict[str, Any] = {"role": "assistant", "content": text}
    if rule.reasoning:
        found["reasoning_content"] = rule.reasoning
    if rule.refusal:
        found["refusal"] = rule.refusal
    if rule.function_call is not None:
        found["function_call"] = dict(rule.function_call)
    if rule.tool_calls:
        found["tool_calls"] = list(rule.tool_calls)
    return found


def logprobs(text: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Log probabilities of a text, where the request asks for them: made up, but always the same
    for the same token."""
    if not body.get("logprobs") or not text:
        return None

    def said(token: str, rank: int = 0) -> dict[str, Any]:
        return {
            "token": token,
            "logprob": -0.25 * (len(token) + rank),
            "bytes": list(token.encode()),
        }

    top = range(min(body.get("top_logprobs") or 0, 20))
    content = [
        {**said(token), "top_logprobs": [said(token + "'" * rank, rank) for rank in top]}
        for token in tokens(text)
    ]
    return {"content": content, "refusal": None}


def _tool_call(rule: Rule, index: int, call: Mapping[str, Any]) -> Iterator[Delta]:
    if rule.parts is None or "function" not in call:
        yield {"index": index, **call}
        return
    first, *rest = _call(rule, call["function"])
    yield {"index": index, **call, "function": first}
    for piece in rest:
        yield {"index": index, "function": piece}


def _call(rule: Rule, function: Mapping[str, Any]) -> Iterator[Delta]:
    if rule.parts is None:
        yield dict(function)
        return
    yield {**function, "arguments": ""}
    for piece in _cut(rule, function.get("arguments", "")):
        yield {"arguments": piece}


def _cut(rule: Rule, text: str) -> list[str]:
    if rule.parts is not None:
        return rule.parts.cut(text)
    return [text] if text else []
