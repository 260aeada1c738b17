"""General forms: answers with a correction, pairs, edits, labelled steps, and rows as they are."""

from __future__ import annotations

from collections.abc import Iterator

from stream_aligner_proxy.core.records import Turn
from training.data.make import Maker
from training.data.rows import (
    BadRecord,
    Example,
    conversation,
    from_dict,
    text_of,
)
from training.data.sources.source import Record, Source


def asked(record: Record) -> tuple[Turn, ...]:
    """The conversation: `question`, `prompt`, `instruction` or `messages`."""
    for name in ("question", "prompt", "instruction", "messages"):
        if record.get(name) is not None:
            return conversation(record[name])
    raise BadRecord("no 'question', 'prompt', 'instruction' or 'messages'")


def correction(record: Record, make: Maker) -> Iterator[Example]:
    answer = text_of(record, "answer", "response", "original")
    better = text_of(record, "correction", "corrected", "edited", "revision")
    return make.edit(asked(record), answer.strip(), better.strip())


def reply(value: object, name: str) -> str:
    """An answer: a text, or a conversation that ends with it."""
    if isinstance(value, list) and value:
        value = conversation(value)[-1].text
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(f"{name!r} must be a text, or messages that end with one")
    return value.strip()


def pair(record: Record, make: Maker) -> Iterator[Example]:
    chosen = reply(record.get("chosen"), "chosen")
    rejected = reply(record.get("rejected"), "rejected")
    question = asked(record)
    if chosen == rejected:
        raise BadRecord("'chosen' and 'rejected' are the same text")
    return make.pair(question, rejected, chosen)


def steps(record: Record, make: Maker) -> Iterator[Example]:
    listed = record.get("steps")
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise BadRecord("'steps' must be a list of texts")
    wrong = record.get("wrong")
    if wrong is None:
        return make.steps(asked(record), listed)
    if not isinstance(wrong, int) or isinstance(wrong, bool) or not 0 <= wrong < len(listed):
        raise BadRecord(f"'wrong' must be null or the place of a step, from 0, not {wrong!r}")
    better = text_of(record, "correction")
    return make.steps(
        asked(record), listed[:wrong], listed[wrong], [better], ends=record.get("end") is True
    )


def rows(record: Record, make: Maker) -> Iterator[Example]:
    yield from_dict({"source": make.source, **record})


def published(record: Record, make: Maker) -> Iterator[Example]:
    """The Stream Aligner's own columns: a sentence, the text before it, its correction."""
    question = asked(record)
    last = text_of(record, "last").strip()
    better = text_of(record, "correction", empty=True).strip()
    prefix = text_of(record, "prefix", empty=True).rstrip()
    yield make.review(question, prefix, last, better, False)


SOURCES = (
    Source("corrections", "answers with a corrected version",
           "question, answer, correction (or original, edited)", correction),
    Source("pairs", "preference pairs", "question, chosen, rejected", pair),
    Source("steps", "solutions with the first wrong step labelled",
           "question, steps, wrong (from 0, or null), correction, end?", steps),
    Source("rows", "rows as this tool writes them", "question, prefix, last, correction, end, ...",
           rows),
    Source("stream-aligner", "the published Stream Aligner set",
           "question, prefix, last, correction", published, hub="htlou/stream-aligner"),
    Source("aligner-20k", "the published Aligner set", "question, answer, correction",
           correction, hub="aligner/aligner-20K"),
)  # fmt: skip
