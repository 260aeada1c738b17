"""Reading records, one at a time: JSON, JSONL, CSV, TSV (plain, gz, xz), Parquet.

A reader yields each record with the place it stands at, `file:line`; what cannot be read is a
`Trouble` in its place, never an exception that ends the run. Only a `.json` file, which is one
value, is held in memory whole.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, cast

from training.data.rows import BadRecord, Example, from_dict

SUFFIXES: Final = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_BATCH: Final = 1000  # rows of Parquet in memory at once
_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")  # as `surrogateescape` reads it


class DataError(Exception):
    """The run cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A record that could not be read, and why."""

    reason: str


class Torn(Trouble):
    """The last line of a file, which was not written to its end."""


Found = tuple[str, Mapping[str, Any] | Trouble]


def parquet() -> Any:
    """pyarrow and its Parquet module. Raises `DataError` where it is not installed."""
    try:
        import_module("pyarrow")
        return import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            "Parquet needs pyarrow: pip install 'stream-aligner-proxy[data]', or use JSONL"
        ) from None


def kind_of_file(path: Path) -> str:
    """The suffix that says how to read it: "" where there is none of ours."""
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def expand(path: Path, pattern: str = "*") -> list[Path]:
    """The files of a folder that match, by name, or the file itself. Raises `DataError`."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}")
    found = sorted(p for p in path.rglob(pattern) if p.is_file() and kind_of_file(p))
    if not found:
        raise DataError(f"nothing to read in {path}: no {pattern} that ends in {_list(SUFFIXES)}")
    return found


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _open(path: Path) -> IO[str]:
    # A bad byte spoils its record, not the file: it is read as what no text may hold.
    how: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    match path.suffix:
        case ".gz":
            return cast(IO[str], gzip.open(path, "rt", **how))
        case ".xz":
            return cast(IO[str], lzma.open(path, "rt", **how))
        case _:
            return cast(IO[str], path.open(**how))


def records(path: Path) -> Iterator[Found]:
    """Every record of a file with its place. Raises `DataError` where the file as such is bad."""
    suffix = kind_of_file(path)
    try:
        if suffix == ".parquet":
            yield from _parquet(path)
            return
        with _open(path) as stream:
            match suffix:
                case ".jsonl":
                    yield from _lines(path, stream)
                case ".json":
                    yield from _document(path, stream)
                case ".csv" | ".tsv":
                    yield from _table(path, stream, "," if suffix == ".csv" else "\t")
                case _:
                    raise DataError(f"{path}: cannot tell what it is; known: {_list(SUFFIXES)}")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(data: Any) -> Mapping[str, Any] | Trouble:
    return data if isinstance(data, dict) else Trouble("not a JSON object")


def _lines(path: Path, stream: IO[str]) -> Iterator[Found]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        if not line.isascii() and (bad := _BAD_BYTE.search(line)):
            yield f"{path}:{number}", Trouble(f"not UTF-8 at character {bad.start() + 1}")
            continue
        try:
            yield f"{path}:{number}", _object(json.loads(line))
        except (ValueError, RecursionError) as error:
            kind = Trouble if line.endswith("\n") else Torn
            yield f"{path}:{number}", kind(f"not JSON: {_why(error)}")


def _why(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _document(path: Path, stream: IO[str]) -> Iterator[Found]:
    """A list of objects; or an object of such lists, one after the other."""
    try:
        data = json.load(stream)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    lists = data.values() if isinstance(data, dict) else [data]
    for at, record in enumerate(one for part in lists for one in _listed(path, part)):
        yield f"{path}#{at}", _object(record)


def _listed(path: Path, part: Any) -> list[Any]:
    if not isinstance(part, list):
        raise DataError(f"{path} must hold a list of objects, or an object of such lists")
    return part


def _table(path: Path, stream: IO[str], delimiter: str) -> Iterator[Found]:
    if delimiter == ",":
        reader = csv.DictReader(stream)
    else:
        reader = csv.DictReader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"{path}:{reader.line_num}", Trouble(f"not a table: {error}")
            continue
        if row is None:
            return
        bad = "more fields than the header names" if None in row else ""
        yield f"{path}:{reader.line_num}", Trouble(bad) if bad else row


def _parquet(path: Path) -> Iterator[Found]:
    module = parquet()
    try:
        file = module.ParquetFile(path)
        at = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            for record in batch.to_pylist():
                yield f"{path}#{at}", record
                at += 1
    except ValueError as error:  # what pyarrow's own errors derive from
        raise DataError(f"{path} is not Parquet: {error}") from error


def rows(path: Path) -> Iterator[tuple[str, Example | Trouble]]:
    """The rows of a file of ours."""
    for place, record in records(path):
        if isinstance(record, Trouble):
            yield place, record
            continue
        try:
            yield place, from_dict(record)
        except BadRecord as error:
            yield place, Trouble(str(error))
