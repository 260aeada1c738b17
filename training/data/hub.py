"""Records of a set on the hub, streamed, through `datasets` where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from training.data.files import DataError, Found, Trouble


def stream(name: str, split: str) -> Iterator[Found]:
    """Every record with its place, `name/split#number`. Raises `DataError`."""
    try:
        load = import_module("datasets").load_dataset
    except ImportError:
        raise DataError(
            f"{name} is on the hub, which needs `datasets`: pip install datasets; or give the path "
            "of a local copy (--source NAME:PATH)"
        ) from None
    try:
        found = load(name, split=split, streaming=True)
        for at, record in enumerate(found):
            is_object = isinstance(record, dict)
            yield f"{name}/{split}#{at}", record if is_object else Trouble("not an object")
    except (OSError, ValueError, RuntimeError) as error:  # what it raises for names and networks
        raise DataError(f"{name} ({split}) cannot be read from the hub: {error}") from error
