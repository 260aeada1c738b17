"""Files of whole lines that outlive a crash: one writer thread, appends only, bounded in size.

Each process writes files of its own and holds a lock on the one it writes. A line that a killed
process left half written can only be the last of its file; whoever starts next, and finds that
nobody holds the lock, cuts it off. Until then a reader sees a last line without its newline.
"""

import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

SUFFIX = ".jsonl"
_BLOCK = 64 * 1024
_TELL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one file, and the number of files in the folder, those of all processes together;
    bytes that may wait for the writer."""

    file: int = 64 * 1024 * 1024
    keep: int = 10
    waiting: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Told what became of records: written with so many bytes, or dropped for a reason."""

    written: Callable[[int], None] = lambda size: None
    dropped: Callable[[str], None] = lambda reason: None


class AuditFiles:
    """`put` from any thread; `close` writes what waits. Nothing raises: a disk that is full or may
    not be written to is logged once a minute and counted."""

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
        self._waiting: deque[tuple[Callable[[], bytes | None], int]] = deque()
        self._waiting_bytes = 0
        self._more = threading.Condition()
        self._closing = False
        self._descriptor: int | None = None
        self._size = 0
        self._number = 0
        self._told = -_TELL_SECONDS
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        recover(folder)
        self._open()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, make: Callable[[], bytes | None], size: int) -> None:
        """Write the line that `make` gives (None: it was dropped), without its newline. `make` is
        called in the writer's thread; `size` is about how many bytes it holds on to."""
        with self._more:
            full = self._closing or self._waiting_bytes + size > self._sizes.waiting
            if not full:
                self._waiting.append((make, size))
                self._waiting_bytes += size
                self._more.notify()
        if full:
            self._counts.dropped("queue")

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, for no longer than this."""
        with self._more:
            self._closing = True
            self._more.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._waiting and not self._closing:
                    self._more.wait()
                batch, self._waiting = self._waiting, deque()
                closing = self._closing
            if batch:
                self._write(self._lines(make for make, _ in batch))
                with self._more:
                    self._waiting_bytes -= sum(size for _, size in batch)
            elif closing:
                self._let_go()
                return

    def _lines(self, makers: Iterable[Callable[[], bytes | None]]) -> list[bytes]:
        lines = []
        for make in makers:
            line = make()
            if line is not None:
                lines.append(line + b"\n")
        return lines

    def _write(self, lines: list[bytes]) -> None:
        done = 0
        try:
            while done < len(lines):
                if self._descriptor is None or self._size >= self._sizes.file:
                    self._let_go()
                    self._open()
                block = [lines[done]]
                size = len(block[0])
                most = min(_BLOCK, self._sizes.file - self._size)
                while done + len(block) < len(lines) and size < most:
                    block.append(lines[done + len(block)])
                    size += len(block[-1])
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
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _open(self) -> None:
        """A new file, under a lock that ends with this process."""
        while True:
            self._number += 1
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            name = f"audit-{stamp}-{os.getpid()}-{self._number:06d}{SUFFIX}"
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._folder / name, flags, 0o600)
                break
            except FileExistsError:
                continue
        # Waits while another process, starting, looks whether anybody holds it.
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._size = 0
        self._prune()

    def _prune(self) -> None:
        """The oldest go. Names begin with the time, so they sort by it."""
        files = sorted(self._folder.glob(f"audit-*{SUFFIX}"))
        for old in files[: max(len(files) - self._sizes.keep, 0)]:
            old.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _tell(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            _log.error("the audit log cannot be written: %s", error.strerror)


def recover(folder: Path) -> int:
    """Cut off the lines that dead processes left half written, and say how many."""
    cut = 0
    for file in folder.glob(f"audit-*{SUFFIX}"):
        try:
            with file.open("r+b") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = held.seek(0, os.SEEK_END)
                whole = _end_of_last_line(held.fileno(), size)
                if whole < size:
                    held.truncate(whole)
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
