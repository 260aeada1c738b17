"""What a source is: a name, where its records come from, and how one of them becomes rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training.data.files import Found
from training.data.make import Maker
from training.data.rows import Example

Record = Mapping[str, Any]
Read = Callable[[Record, Maker], Iterator[Example]]


@dataclass(frozen=True, slots=True)
class Source:
    """One adapter.

    `read` raises `BadRecord` for a record that is wrong, `SetAside` for one of no use here.
    `columns` and `about` are for people. `hub`: its name on the hub, with the `split` to read.
    `files`: which files of a folder are its records. `evaluation`: never trained on.
    `similarity`: see `Maker`. `generate`: makes records up, without end, from a seed; `number` of
    them are read where no limit is set. `grows`: its files may be written to now, or their writer
    was killed, so that a last line that is not whole is no mistake.
    """

    name: str
    about: str
    columns: str
    read: Read
    hub: str | None = None
    split: str = "train"
    files: str = "*"
    evaluation: bool = False
    similarity: float = 0.5
    generate: Callable[[int], Iterator[Found]] | None = None
    number: int = 0
    grows: bool = False
