"""Files of whole lines that outlive a crash: one writer thread, appends only, bounded in size.

A line is written whole or not at all, unless the process is killed meanwhile: see `audit_folder`.
"""

import fcntl
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stream_aligner_proxy.observers.audit_folder import SUFFIX, locked, prune, recover

_log = logging.getLogger(__name__)

_BLOCK = 64 * 1024
_TELL_SECONDS = 60.0
_MAKING_SECONDS = 1.0

_Waiting = tuple[Callable[[], bytes | None], int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one file, unless it holds a single line that is longer; the number of files in the
    folder, those of all processes together, unless more processes are writing; bytes that may wait
    for the writer."""

    file: int = 64 * 1024 * 1024
    keep: int = 10
    waiting: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Told what became of records: written with so many bytes, or dropped for a reason; and how
    many of their texts were withheld."""

    written: Callable[[int], None] = lambda size: None
    dropped: Callable[[str], None] = lambda reason: None
    withheld: Callable[[int], None] = lambda texts: None


class AuditFiles:
    """`put` from any thread; `close` writes what waits. Nothing raises: a disk that is full or may
    not be written to is logged once a minute and counted. There is no file before the first
    line, and no thread before the first `put`."""

    def __init__(
        self,
        folder: Path,
        sizes: Sizes | None = None,
        *,
        sync: bool = False,
        counts: Counts | None = None,
    ) -> None:
        """Raises `OSError` where the folder cannot be made or written to."""
        self._folder = folder
        self._sizes = sizes or Sizes()
        self._sync = sync
        self._counts = counts or Counts()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._more = threading.Condition()
        self._closing = False
        self._descriptor: int | None = None  # of the file that is being written, which is locked
        self._path = folder
        self._size = 0
        self._number = 0
        self._told = -_TELL_SECONDS
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written to
        recover(folder)
        self._thread: threading.Thread | None = None

    def put(self, make: Callable[[], bytes | None], size: int) -> None:
        """Write the line that `make` gives (None: it was dropped), without its newline. `make` is
        called in the writer's thread; `size` is about how many bytes it holds on to."""
        with self._more:
            full = self._closing or self._waiting_bytes + size > self._sizes.waiting
            if not full:
                self._waiting.append((make, size))
                self._waiting_bytes += size
                self._more.notify()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                    self._thread.start()
        if full:
            self._counts.dropped("queue")

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, for no longer than this."""
        with self._more:
            self._closing = True
            self._more.notify()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._waiting and not self._closing:
                    self._more.wait()
                batch, self._waiting = self._waiting, deque()
                closing = self._closing
            for lines, size in _made(batch):
                self._write(lines)
                with self._more:
                    self._waiting_bytes -= size
            if closing and not batch:
                self._let_go()
                return

    def _write(self, lines: list[bytes]) -> None:
        done = 0
        try:
            while done < len(lines):
                self._make_room(len(lines[done]))
                block = [lines[done]]
                size = len(block[0])
                most = min(_BLOCK, self._sizes.file - self._size)
                while done + len(block) < len(lines):
                    following = lines[done + len(block)]
                    if size + len(following) > most:
                        break
                    block.append(following)
                    size += len(following)
                self._append(b"".join(block))
                done += len(block)
                for line in block:
                    self._counts.written(len(line))
        except OSError as error:
            self._tell(error)
            for _ in lines[done:]:
                self._counts.dropped("disk")

    def _append(self, data: bytes) -> None:
        """All of it or none: what was written in part is taken back."""
        assert self._descriptor is not None
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            if self._sync:
                os.fsync(self._descriptor)
        except OSError:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                # Behind half a line nothing can be written. It stays the last of its file, and is
                # cut off as a dead process's is.
                self._let_go()
            raise
        self._size += len(data)

    def _make_room(self, size: int) -> None:
        """See that there is a file, in its folder still, with room for so much."""
        if self._descriptor is not None:
            found = os.fstat(self._descriptor)
            self._size = found.st_size
            if not found.st_nlink or (self._size and self._size + size > self._sizes.file):
                self._let_go()
        if self._descriptor is None:
            with locked(self._folder):
                prune(self._folder, self._sizes.keep - 1)
                self._open()

    def _open(self) -> None:
        """A new file, under a lock that ends with this process."""
        while True:
            self._number += 1
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            name = f"audit-{stamp}-{os.getpid()}-{self._number:06d}{SUFFIX}"
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                opened = os.open(self._folder / name, flags, 0o600)
            except FileExistsError:
                continue
            try:
                fcntl.flock(opened, fcntl.LOCK_EX)
                # Somebody may have removed it before it was locked.
                linked = os.fstat(opened).st_nlink > 0
            except OSError:
                os.close(opened)
                raise
            if linked:
                break
            os.close(opened)
        self._descriptor, self._path, self._size = opened, self._folder / name, 0

    def _let_go(self) -> None:
        if self._descriptor is not None:
            if not self._size:  # nothing whole is in it
                with suppress(OSError):
                    self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _tell(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            _log.error("the audit log cannot be written: %s", error.strerror)


def _made(batch: Iterable[_Waiting]) -> Iterator[tuple[list[bytes], int]]:
    """The lines, in parts, with what they held on to while they waited. Redaction can be slow: what
    is made is written after a second at the latest, and is not lost with the rest."""
    lines: list[bytes] = []
    held = 0
    since = time.monotonic()
    for make, size in batch:
        if (line := make()) is not None:
            lines.append(line + b"\n")
        held += size
        if time.monotonic() - since >= _MAKING_SECONDS:
            yield lines, held
            lines, held, since = [], 0, time.monotonic()
    yield lines, held
