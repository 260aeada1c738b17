"""The demo world: conversations made up by rule, or the upstream's own mistakes as a file.

`training.mistakes` writes that file, one `training.corrections.Reviewed` a line; records made up
here have the same keys. Only the world's train split is ever drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from training.data.files import DataError, Found
from training.data.make import Maker
from training.data.rows import BadRecord, Example, conversation
from training.data.sources.source import Record, Source

_NUMBER = re.compile(r"\d+")


def generate(seed: int) -> Iterator[Found]:
    """Conversations of the train split, without end."""
    try:
        # Here, since it loads torch, which no other source needs.
        from training.corrections import Mix, cut_short, synthetic  # noqa: PLC0415
        from training.world.split import stream  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"demo needs the `training` extra: {error}") from None
    mix, rng, at = Mix(), stream("train", "data", seed), 0
    while True:
        yield f"demo#{at}", asdict(cut_short(synthetic(rng, mix), rng, mix.cut))
        at += 1


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise BadRecord(f"{name!r} must be a list of texts")
    return list(value)


def read(record: Record, make: Maker) -> Iterator[Example]:
    """Reviews of the sentences at their places in the right reply, and of whole replies."""
    turns = conversation(record.get("messages"))
    sentences = _texts(record.get("sentences"), "sentences")
    rows, whole = record.get("rows"), record.get("whole")
    if not isinstance(rows, list | tuple) or not isinstance(whole, list | tuple):
        raise BadRecord("'rows' and 'whole' must be lists")
    # The world holds out whole instances, whatever their numbers; so do the splits made here.
    key = _NUMBER.sub("#", turns[-1].text)
    for at, row in enumerate(rows):
        place = row.get("at") if isinstance(row, Mapping) else None
        if not isinstance(place, int) or not 0 <= place <= len(sentences):
            raise BadRecord(f"rows[{at}].at must be a place among the sentences, not {place!r}")
        said, better, end = row.get("sentence"), row.get("correction"), row.get("end", False)
        if not isinstance(said, str) or not said.strip() or not isinstance(end, bool):
            raise BadRecord(f"rows[{at}] needs a text as sentence, and true or false as end")
        if not isinstance(better, str | None):
            raise BadRecord(f"rows[{at}].correction must be a text or null")
        prefix = " ".join(sentences[:place])
        yield make.review(turns, prefix, said, said if better is None else better, end, key=key)
    for at, pair in enumerate(whole):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise BadRecord(f"whole[{at}] must be a reply and its correction, or null")
        better = pair[0] if pair[1] is None else pair[1]
        if not isinstance(better, str):
            raise BadRecord(f"whole[{at}]: the correction must be a text or null")
        yield from make.whole_only(turns, pair[0], better, key=key)


SOURCES = (
    Source("demo", "the demo world's own, made up; with a path what training.mistakes wrote",
           "messages, sentences, rows, whole", read, generate=generate, number=20_000),
)  # fmt: skip
