"""Writing rows, one at a time: JSONL (gz too) and Parquet. A file is written beside its place and
renamed when it is complete, so a file that is there is whole.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, cast

from training.data.files import DataError, kind_of_file, parquet
from training.data.rows import Example, Row, to_dict

_BATCH: Final = 1000  # rows of Parquet in memory at once


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
        if suffix != ".jsonl" or path.name.endswith(".xz"):
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
