"""Every source by name."""

from __future__ import annotations

from typing import Final

from training.data.files import DataError
from training.data.sources import (
    audit,
    demo,
    grade_school,
    preferences,
    solutions,
    statements,
    texts,
)
from training.data.sources.source import Source

SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for module in (texts, audit, demo, preferences, solutions, grade_school, statements)
    for source in module.SOURCES
}


def source(name: str) -> Source:
    """By its own name or its name on the hub. Raises `DataError`."""
    for one in SOURCES.values():
        if name in (one.name, one.hub):
            return one
    raise DataError(f"no source {name!r}; known: {', '.join(SOURCES)}")
