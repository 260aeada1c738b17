"""What the tests of training data share: a small source, a build, and its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data.config import BuildConfig
from training.data.files import rows
from training.data.pipeline import build
from training.data.rows import Example, Row, Whole


def record(at: int, wrong: bool = True) -> dict[str, Any]:
    """A correction of an answer to a question of its own."""
    answer = f"Here is number {at}. It is a {'mess' if wrong else 'word'}. Then comes the rest."
    return {
        "question": f"What is {at * 7919 % 10007:x} {at * 104729 % 99991:x} {at:x}?",
        "answer": answer,
        "correction": answer.replace("mess", "word"),
    }


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def run(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    said: list[str] = []
    sources = [{"name": "corrections", "path": str(path)}]
    return build(BuildConfig(sources=sources, **options), out, say=said.append)


def made(out: Path, pattern: str = "*/*.jsonl") -> list[Example]:
    found = [one for path in sorted(out.glob(pattern)) for _, one in rows(path)]
    assert all(isinstance(one, Row | Whole) for one in found)
    return found  # type: ignore[return-value]


def aside(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
