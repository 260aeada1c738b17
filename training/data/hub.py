"""Records of a set on the hub, streamed, through `datasets` where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from training.data.files import DataError, Found, Trouble

_FIRST_ANSWER = 10.0  # seconds


def stream(name: str, split: str) -> Iterator[Found]:
    """Every record with its place, `name/split#number`. Raises `DataError`."""
    try:
        load = import_module("datasets").load_dataset
    except ImportError:
        raise DataError(
            f"{name} is on the hub, which needs `datasets`: pip install datasets; or give the path "
            "of a local copy (--source NAME:PATH)"
        ) from None
    # What `datasets` raises for names, files and networks, some of it its HTTP client's own.
    raised = (
        OSError,
        ValueError,
        RuntimeError,
        import_module("datasets.exceptions").DatasetsError,
        import_module("huggingface_hub.utils").httpx.HTTPError,
    )
    try:
        _answers(name)
        found = load(name, split=split, streaming=True)
        for at, record in enumerate(found):
            is_object = isinstance(record, dict)
            yield f"{name}/{split}#{at}", record if is_object else Trouble("not an object")
    except raised as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} ({split}) cannot be read from the hub: {why}") from error


def _answers(name: str) -> None:
    """Ask the hub for a set once, since `datasets` itself asks again for half a minute.

    Any answer will do, and none is needed offline: `datasets` says better what is wrong with a
    set, and may have it in its cache.
    """
    errors = import_module("huggingface_hub.errors")
    with suppress(errors.HfHubHTTPError, errors.OfflineModeIsEnabled):
        import_module("huggingface_hub").HfApi().dataset_info(name, timeout=_FIRST_ANSWER)
