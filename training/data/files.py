"""Reading records and writing rows, one at a time: JSON, JSONL, CSV, TSV (plain, gz, xz), Parquet.

A reader yields each record with the place it stands at, `file:line`; what cannot be read is a
`Trouble` in its place, never an exception that ends the run. Writers write beside the file and
rename it when it is complete, so a file that is there is whole.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, cast

from training.data.rows import BadRecord, Example, Row, from_dict, to_dict

SUFFIXES: Final = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_BATCH: Final = 1000  # rows of Parquet in memory at once


class DataError(Exception):
    """The run cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A record that could not be read, and why."""

    reason: str


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
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if path.name.endswith(".xz"):
        return lzma.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


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
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(data: Any) -> Mapping[str, Any] | Trouble:
    return data if isinstance(data, dict) else Trouble("not a JSON object")


def _lines(path: Path, stream: IO[str]) -> Iterator[Found]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", _object(json.loads(line))
        except json.JSONDecodeError as error:
            yield f"{path}:{number}", Trouble(f"not JSON: {error.msg}")


def _document(path: Path, stream: IO[str]) -> Iterator[Found]:
    """A list of objects; or an object of such lists, one after the other."""
    try:
        data = json.load(stream)
    except json.JSONDecodeError as error:
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
    try:
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row:
                yield place, Trouble("more fields than the header names")
            else:
                yield place, row
    except csv.Error as error:
        yield f"{path}:{reader.line_num}", Trouble(f"not a table: {error}")


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


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write under; it becomes `path` when the block is left without an error."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def dump(example: Example) -> str:
    return json.dumps(to_dict(example), ensure_ascii=False)


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write rows as JSONL (gz too) or Parquet, as the name says; return how many. One kind of row
    to a Parquet file. Raises `DataError`."""
    suffix, count = kind_of_file(path), 0
    with whole_file(path) as partial:
        if suffix == ".parquet":
            return _write_parquet(partial, examples)
        if suffix != ".jsonl":
            raise DataError(f"{path}: rows are written as .jsonl, .jsonl.gz or .parquet")
        packed = path.name.endswith(".gz")
        with (
            cast(IO[str], gzip.open(partial, "wt", encoding="utf-8"))
            if packed
            else partial.open("w", encoding="utf-8")
        ) as out:
            for example in examples:
                out.write(dump(example) + "\n")
                count += 1
    return count


def _schema(sentences: bool) -> Any:
    arrow = import_module("pyarrow")
    text = arrow.string()
    turn = arrow.struct([("role", text), ("content", text)])
    if not sentences:
        return arrow.schema([
            ("question", arrow.list_(turn)), ("answer", text), ("correction", text),
            ("source", text), ("group", text),
        ])  # fmt: skip
    return arrow.schema([
        ("question", arrow.list_(turn)), ("prefix", text), ("last", text), ("correction", text),
        ("end", arrow.bool_()), ("kind", text), ("source", text), ("group", text),
    ])  # fmt: skip


def _write_parquet(path: Path, examples: Iterable[Example]) -> int:
    module, count = parquet(), 0
    arrow = import_module("pyarrow")
    writer, batch = None, []
    sentences = True

    def flush() -> None:
        assert writer is not None
        writer.write_table(arrow.Table.from_pylist(batch, schema=writer.schema))
        batch.clear()

    try:
        for example in examples:
            if writer is None:
                sentences = isinstance(example, Row)
                writer = module.ParquetWriter(path, _schema(sentences), compression="zstd")
            if isinstance(example, Row) != sentences:
                raise DataError("one Parquet file holds sentence rows or whole answers, not both")
            batch.append(to_dict(example))
            count += 1
            if len(batch) == _BATCH:
                flush()
        if writer is None:
            writer = module.ParquetWriter(path, _schema(sentences), compression="zstd")
        flush()
    finally:
        if writer is not None:
            writer.close()
    return count
