"""Adding an entry to the file of keys, which a running proxy may read at any moment.

The new content takes the old one's place in one step, and only after it was read: whatever happens
before, the file is as it was. What people wrote into it, comments too, stays.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stream_aligner_proxy.access.keys import Key
from stream_aligner_proxy.core.errors import ConfigError

_READ = Callable[[Path], Sequence[Key]]


def add_entry(file: Path, entry: str, read: _READ) -> None:
    """Add `entry`, a list of one as YAML text. A new file is its owner's alone; an old one keeps
    its owner and its mode. Raises `ConfigError`, as `read` does."""
    try:
        # Where a link leads to: it stays a link.
        target = Path(os.path.realpath(file))
        with _alone(target.parent):
            _add(target, entry, read)
    except OSError as error:
        raise ConfigError(f"--file: {file} cannot be written ({type(error).__name__})") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time: of two that add at once, both entries are to be there. The folder is locked,
    since the file is another one afterwards."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _add(target: Path, entry: str, read: _READ) -> None:
    there = target.stat() if target.exists() else None
    before = read(target) if there else ()
    text = target.read_text(encoding="utf-8") if there else ""
    if not before:  # `[]`, which nothing can be appended to
        text = "".join(line for line in text.splitlines(keepends=True) if line.strip() != "[]")
    if text and not text.endswith("\n"):
        text += "\n"
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    new = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            if there:
                os.fchmod(descriptor, there.st_mode & 0o7777)
                os.fchown(descriptor, there.st_uid, there.st_gid)
            out.write(text + entry)
            out.flush()
            os.fsync(descriptor)
        _check(new, before, read)
        new.replace(target)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def _check(new: Path, before: Sequence[Key], read: _READ) -> None:
    with suppress(ConfigError):
        *others, _ = read(new)
        if [(key.name, key.digests) for key in others] == [
            (key.name, key.digests) for key in before
        ]:
            return
    raise ConfigError(
        "--file: nothing can be appended to a list that is written otherwise than as entries that "
        "begin with '- '; leave --file out, and put the entry in by hand"
    )
