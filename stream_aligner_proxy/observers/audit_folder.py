"""The folder of the audit log, in which several processes write.

Each process writes files of its own, and holds a lock on the one it writes: a file that is locked
belongs to a living process, and nobody else cuts or removes it. A line that a killed process left
half written can only be the last of its file; whoever starts next cuts it off. Until then a reader
sees a last line without its newline.

Files appear, are cut and go under a lock of the folder, so that processes do not count each other's
work twice. Where the file system has no such lock, one file too many may go.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

SUFFIX = ".jsonl"
_BLOCK = 64 * 1024


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Until the end no other process makes, cuts or removes a file there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # network file systems may lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _ownerless(file: Path) -> Iterator[int]:
    """The file, opened and locked. Raises `OSError` where another process writes it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    """The oldest first: names begin with the time."""
    return sorted(folder.glob(f"audit-*{SUFFIX}"))


def prune(folder: Path, keep: int) -> None:
    """Remove the oldest files but so many, and none that is being written. The caller has locked
    the folder."""
    files = _files(folder)
    excess = len(files) - keep
    for old in files:
        if excess <= 0:
            return
        try:
            with _ownerless(old):
                old.unlink()
        except FileNotFoundError:
            pass  # somebody else has removed it
        except OSError:
            continue
        excess -= 1


def recover(folder: Path) -> int:
    """Cut off the lines that dead processes left half written, and say how many."""
    cut = 0
    with locked(folder):
        for file in _files(folder):
            try:
                with _ownerless(file) as descriptor:
                    size = os.fstat(descriptor).st_size
                    whole = _end_of_last_line(descriptor, size)
                    if whole < size:
                        os.ftruncate(descriptor, whole)
                        cut += 1
            except OSError:
                continue  # another process writes it, or has taken it away
    if cut:
        _log.warning("the audit log had %d half-written lines, which were cut off", cut)
    return cut


def _end_of_last_line(descriptor: int, size: int) -> int:
    end = size
    while end > 0:
        begin = max(end - _BLOCK, 0)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
