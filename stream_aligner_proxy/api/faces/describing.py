"""What every API tells in its own words: usage, sentences with their history, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from stream_aligner_proxy.core.records import Cost, Delivery, Finished, Usage


def usage_object(usage: Usage) -> dict[str, Any]:
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    # An upstream's own total may hold more than these two, such as Gemini's thinking.
    return {**counts, **usage.details}


def total(finished: Sequence[Finished]) -> Usage | None:
    """The usage of all choices: one prompt, every completion; None unless it is known of each.

    Of the details, counts of the prompt's tokens are those of the first choice, others are added.
    """
    told = [one.usage for one in finished if one.usage is not None]
    if len(told) < len(finished):
        return None
    if len(told) == 1:
        return told[0]
    details: dict[str, Any] = {}
    for name in dict.fromkeys(name for usage in told for name in usage.details):
        values = [usage.details.get(name) for usage in told]
        details[name] = values[0] if name.startswith("prompt") else _sum(values)
    # It is of one choice; the counts say it for all.
    details.pop("total_tokens", None)
    completion = sum(usage.completion_tokens for usage in told)
    return Usage(told[0].prompt_tokens, completion, details)


def _sum(values: Sequence[Any]) -> Any:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        return sum(numbers)
    objects = [v for v in values if isinstance(v, Mapping)]
    if not objects:
        return next((v for v in values if v is not None), None)
    names = dict.fromkeys(name for one in objects for name in one)
    return {name: _sum([one[name] for one in objects if name in one]) for name in names}


def summary(finished: Finished) -> dict[str, Any]:
    """The extension object at the end of a reply."""
    return {
        "mode": finished.mode,
        "continuation": finished.continuation,
        "cost": asdict(finished.cost),
        "added_ms": _milliseconds(finished.added_seconds),
        "first_text_ms": _milliseconds(finished.first_text_seconds),
    }


def summaries(
    finished: Sequence[Finished], sentences: Sequence[list[dict[str, Any]]] | None
) -> dict[str, Any]:
    """The same for a whole reply: of one choice, or of all with each in `choices`."""
    each = [summary(one) for one in finished]
    if sentences is not None:
        for told, found in zip(each, sentences, strict=True):
            told["sentences"] = found
    if len(each) == 1:
        return each[0]
    spent = {
        one.name: sum(getattr(choice.cost, one.name) for choice in finished) for one in fields(Cost)
    }
    # They run side by side: the reply is late by the latest.
    added = max(one.added_seconds for one in finished)
    return {
        "mode": finished[0].mode,
        "cost": spent,
        "added_ms": _milliseconds(added),
        "choices": each,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def sentence_object(delivery: Delivery) -> dict[str, Any] | None:
    """Where a delivered text comes from; None for what is not a sentence."""
    unit = delivery.unit
    if unit is None:
        return None
    described: dict[str, Any] = {
        "index": unit.index,
        "original": unit.original,
        "text": unit.text,
        "verdict": unit.outcome,
        "end": unit.end,
        "branch": unit.branch,
        "review_ms": _milliseconds(delivery.review_seconds),
        "waited_ms": _milliseconds(delivery.waited_seconds),
    }
    if unit.error is not None:
        described["error"] = unit.error
    return described


class _Pieces:
    """A text that is still growing: joined once, at the end, since every join copies it."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)


def merge(into: dict[str, Any], key: str, value: Any) -> None:
    """Add one delta: strings and lists grow, objects merge, anything else replaces. What has grown
    is read by `joined`."""
    before = into.get(key)
    match before, value:
        case _Pieces(), str():
            before.pieces.append(value)
        case str(), str():
            into[key] = _Pieces(before, value)
        case list(), list():
            before += value  # in place: some servers send one with each token
        # What will grow is a copy: the delta's own must not.
        case _, dict():
            grown = into[key] = before if isinstance(before, dict) else {}
            for inner, piece in value.items():
                merge(grown, inner, piece)
        case _, list():
            into[key] = list(value)
        case _, None:
            into.setdefault(key, None)
        case _:
            into[key] = value


def joined(merged: dict[str, Any]) -> dict[str, Any]:
    """What `merge` has gathered, as JSON has it."""
    return {key: _whole(value) for key, value in merged.items()}


def _whole(value: Any) -> Any:
    match value:
        case _Pieces():
            return "".join(value.pieces)
        case dict():
            return joined(value)
    return value
