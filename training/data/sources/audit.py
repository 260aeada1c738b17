"""Our own audit log: one line per reply, with every unit that was committed.

The format, version 1 (`docs/training-data.md` explains it; unknown keys are for later versions):

    {"v": 1, "conversation": [{"role", "content"}, ...],
     "units": [{"index", "original", "text", "outcome", "branch", "end", "review", "error"}, ...]}

A unit is `core.records.Committed`, field by field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, get_args

from stream_aligner_proxy.core.records import Committed, Outcome, Turn
from training.data.align import Step
from training.data.make import Maker
from training.data.rows import BadRecord, Example, SetAside, conversation, kind_of
from training.data.sources.source import Record, Source

VERSION: Final = 1
_FIELDS: Final = {f.name: f.type for f in fields(Committed)}


def line(turns: tuple[Turn, ...], units: list[Committed]) -> dict[str, Any]:
    """A reply as one line of the log."""
    return {
        "v": VERSION,
        "conversation": [{"role": turn.role, "content": turn.text} for turn in turns],
        "units": [{name: getattr(unit, name) for name in _FIELDS} for unit in units],
    }


def _unit(value: Any, at: int) -> Committed:
    if not isinstance(value, Mapping):
        raise BadRecord(f"units[{at}] must be an object")
    for name, kind in (("index", int), ("original", str), ("text", str), ("branch", int)):
        if not isinstance(value.get(name), kind):
            raise BadRecord(f"units[{at}].{name} must be {kind.__name__}")
    if value.get("outcome") not in get_args(Outcome):
        raise BadRecord(f"units[{at}].outcome must be one of {', '.join(get_args(Outcome))}")
    if not isinstance(value.get("end", False), bool):
        raise BadRecord(f"units[{at}].end must be true or false")
    return Committed(**{name: value[name] for name in _FIELDS if name in value})


def read(record: Record, make: Maker) -> Iterator[Example]:
    """Verdicts become rows; what was not reviewed is committed text and nothing more."""
    if record.get("v") != VERSION:
        raise BadRecord(f"'v' must be {VERSION}, not {record.get('v')!r}: a newer log?")
    if record.get("withheld"):
        raise SetAside("texts were withheld by redaction")
    units = record.get("units")
    if not isinstance(units, list):
        raise BadRecord("'units' must be a list")
    turns = conversation(record.get("conversation"))
    steps = []
    for at, value in enumerate(units):
        unit = _unit(value, at)
        judged = unit.outcome in ("keep", "replace") and bool(unit.original.strip())
        kind = kind_of(unit.original.strip(), unit.text.strip(), unit.end)
        steps.append(Step(unit.original, unit.text, kind, unit.end, code=not judged))
    if all(step.code for step in steps):
        raise SetAside("nothing was reviewed")
    return make.reviewed(turns, steps)


SOURCES = (
    Source("audit-log", "the proxy's own verdicts", "v, conversation, units", read, grows=True),
)  # fmt: skip
