"""What a single line break in a model's reply means: does the line go on, or does a unit end?

Counts, over recorded replies, the line breaks between two lines of text (fenced code and blank
lines left out) by what stands around them. A hard wrap inside a sentence shows as `wide` (60
characters or more), `open` (no stop, colon or semicolon at its end) and a small letter after it.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.report import Row, publish
from bench.splitter import data_folder

FOLDERS = ("vicuna-blog-eval", "mt-bench", "llmbar", "self-instruct-eval", "hh-rlhf")
WIDE = 60
SHORTEST = 80  # shorter strings are names and labels
FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
BREAK = re.compile(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)")
CLOSED = re.compile(r"[.!?:;…。][\"'”)*]*$")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def values(path: Path) -> Iterator[Any]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    try:
        yield json.loads(text)
    except json.JSONDecodeError:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


def counted(folder: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json*")):
        replies = (reply for value in values(path) for reply in strings(value))
        for text in (FENCED.sub("", reply) for reply in replies if len(reply) >= SHORTEST):
            for match in BREAK.finditer(text):
                line = text[: match.start()].rsplit("\n", 1)[-1]
                small = text[match.end()].islower()
                found["breaks"] += 1
                found["small_letter_follows"] += small
                if not CLOSED.search(line):
                    found["no_stop_before"] += 1
                    found["hard_wraps"] += small and len(line) >= WIDE
    return found


def main() -> None:
    folder = data_folder()
    if folder is None:
        sys.exit("no data: set STREAM_ALIGNER_DATA to the folder that holds the data sets")
    total: Counter[str] = Counter()
    rows = list[Row]()
    columns = ("breaks", "no_stop_before", "small_letter_follows", "hard_wraps")
    for name in FOLDERS:
        found = counted(folder / name)
        total += found
        rows.append({"data": name, **{column: found[column] for column in columns}})
    rows.append({"data": "all", **{column: total[column] for column in columns}})
    publish("line_breaks", rows, "bench.line_breaks")


if __name__ == "__main__":
    main()
