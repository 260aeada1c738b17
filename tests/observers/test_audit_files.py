"""Whole lines, whatever happens to the process or the disk."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from stream_aligner_proxy.observers import audit_files
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts, Sizes
from stream_aligner_proxy.observers.audit_folder import recover

# Says how many lines are in its files, now and then.
_WRITER = """
import json, sys, threading
from pathlib import Path
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts, Sizes

def written(size):
    global done
    done += 1
    room.release()
    if done % 50 == 0:
        print(done, flush=True)

done = number = 0
room = threading.Semaphore(200)
folder, file, keep = sys.argv[1:]
files = AuditFiles(Path(folder), Sizes(file=int(file), keep=int(keep)), counts=Counts(written))
while True:
    room.acquire()
    line = json.dumps({"n": number, "text": "x" * (number * 7919 % 20000)}).encode()
    files.put(lambda line=line: line, len(line))
    number += 1
"""


def lines(folder: Path) -> list[bytes]:
    return [
        line for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()
    ]


def counts() -> tuple[Counts, Counter[str]]:
    found: Counter[str] = Counter()

    def written(size: int) -> None:
        found["written"] += 1
        found["bytes"] += size

    return Counts(written, lambda reason: found.update([reason])), found


def put_and_wait(files: AuditFiles, line: bytes = b"{}") -> None:
    """Return when it is written: only then the next one is made."""
    for made in (line, None):
        begun = threading.Event()

        def make(made: bytes | None = made, begun: threading.Event = begun) -> bytes | None:
            begun.set()
            return made

        files.put(make, 1)
        assert begun.wait(10)


def test_what_is_put_is_written_in_order_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    told, found = counts()
    files = AuditFiles(tmp_path / "log", counts=told)
    for number in range(500):
        files.put(lambda number=number: str(number).encode(), 10)
    files.close()
    assert lines(tmp_path / "log") == [str(number).encode() for number in range(500)]
    assert found["written"] == 500
    assert found["bytes"] == sum(len(line) + 1 for line in lines(tmp_path / "log"))
    (file,) = (tmp_path / "log").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_killed_writer_leaves_no_half_record(tmp_path: Path) -> None:
    torn = whole = 0
    for number in range(12):
        folder = tmp_path / str(number)
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder), str(10**9), "1000"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(3 + number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        torn += recover(folder)
        assert recover(folder) == 0
        records = [json.loads(line) for line in lines(folder)]
        whole += len(records)
        # Nothing before the last is missing, and each is whole.
        assert [record["n"] for record in records] == list(range(len(records)))
        assert all(len(record["text"]) == record["n"] * 7919 % 20000 for record in records)
    assert whole > 100


def test_a_torn_last_line_is_cut_off_by_whoever_starts_next_and_no_other(tmp_path: Path) -> None:
    dead = tmp_path / "audit-20260101T000000-1-1.jsonl"
    dead.write_bytes(b'{"n": 0}\n{"n": 1}\n{"n": ' + b"9" * 200_000)
    first = AuditFiles(tmp_path)
    assert dead.read_bytes() == b'{"n": 0}\n{"n": 1}\n'
    put_and_wait(first)
    # One that is being written is left alone, though its last line is not whole just now.
    (alive,) = (file for file in tmp_path.iterdir() if file != dead)
    with alive.open("ab") as half:
        half.write(b'{"half": ')
    second = AuditFiles(tmp_path)
    assert alive.read_bytes() == b'{}\n{"half": '
    first.close()
    second.close()


def test_files_have_a_bound_and_so_has_their_number(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path, Sizes(file=4096, keep=3))
    for number in range(200):
        files.put(lambda number=number: json.dumps({"n": number, "x": "y" * 500}).encode(), 500)
    files.close()
    found = sorted(tmp_path.iterdir())
    assert len(found) == 3
    assert all(file.stat().st_size < 4096 + 600 for file in found)
    assert json.loads(lines(tmp_path)[-1])["n"] == 199


def test_several_processes_write_files_of_their_own(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), "200000", "1000"], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(4):
            writer.stdout.readline()
    for writer in writers:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
    recover(tmp_path)
    by_process: dict[str, list[Path]] = {}
    for file in tmp_path.iterdir():
        by_process.setdefault(file.name.split("-")[2], []).append(file)
    assert set(by_process) == {str(writer.pid) for writer in writers}
    for files in by_process.values():
        files.sort(key=lambda file: int(file.stem.split("-")[3]))
        numbers = [json.loads(one)["n"] for file in files for one in file.read_bytes().splitlines()]
        assert numbers == list(range(len(numbers)))
        assert len(files) > 1


def test_what_waits_is_bounded_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    told, found = counts()
    files = AuditFiles(tmp_path, Sizes(waiting=1000), counts=told)
    busy, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        busy.set()
        assert go_on.wait(10)
        return b"slow"

    files.put(slow, 1)
    assert busy.wait(10)
    for _ in range(20):
        files.put(lambda: b"fast", 100)
    go_on.set()
    files.close()
    assert found["queue"] == 11
    assert found["written"] == 10
    assert len(lines(tmp_path)) == 10


def test_a_full_disk_is_logged_once_and_counted_and_leaves_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told, found = counts()
    files = AuditFiles(tmp_path, counts=told)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for _ in range(5):
            wrote = threading.Event()
            for number in range(30):
                line = json.dumps({"n": number, "x": "y" * 1000}).encode()
                files.put(lambda line=line: line, 1000)

            def told_when_done(wrote: threading.Event = wrote) -> None:
                wrote.set()

            files.put(told_when_done, 1)  # type: ignore[arg-type]
            assert wrote.wait(10)
    finally:
        files.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found["disk"] > 0
    assert found["written"] + found["disk"] == 150
    for line in lines(tmp_path):
        json.loads(line)
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        AuditFiles(tmp_path / "file" / "log")
    assert not [thread for thread in threading.enumerate() if thread.name == "audit"]
    assert os.listdir(tmp_path) == ["file"]


# --- who may remove a file, and when it is given up -----------------------------------------------

_SLOW_WRITER = """
import sys
from pathlib import Path
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts, Sizes
told = Counts(lambda size: print("written", flush=True))
files = AuditFiles(Path(sys.argv[1]), Sizes(file=4096, keep=3), counts=told)
for line in sys.stdin:
    files.put(lambda line=line: line.strip().encode(), 1)
"""


def test_a_file_that_a_living_process_writes_is_not_removed_and_a_dead_ones_is(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", _SLOW_WRITER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for line in ('"first"', '"second"'):
            if line == '"second"':
                (file,) = tmp_path.iterdir()
                kept = file.rename(tmp_path / "audit-20200101T000000-1-000001.jsonl")
                files = AuditFiles(tmp_path, Sizes(file=4096, keep=3))
                for number in range(100):
                    put_and_wait(files, json.dumps({"n": number, "x": "y" * 500}).encode())
                    assert len(os.listdir(tmp_path)) <= 3
            other.stdin.write(f"{line}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "written\n"
        assert len(os.listdir(tmp_path)) == 3
        assert kept.read_bytes() == b'"first"\n"second"\n'
        other.kill()
    for _ in range(20):
        put_and_wait(files, b"z" * 1000)
    assert not kept.exists()
    assert len(os.listdir(tmp_path)) == 3
    files.close()


def test_the_bound_holds_while_several_processes_write(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path), "30000", "4"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    counted = set()
    for one in writers * 2:
        assert one.stdout is not None
        one.stdout.readline()
        counted.add(len(os.listdir(tmp_path)))
    for one in writers:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()
    # A listing that lasts while files come and go may show one of each more than there ever were.
    assert max(counted) <= 4 + len(writers)
    assert 3 <= len(os.listdir(tmp_path)) <= 4
    assert all(file.stat().st_size <= 30000 for file in tmp_path.iterdir())


def test_behind_half_a_line_that_cannot_be_taken_back_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, found = counts()
    files = AuditFiles(tmp_path, counts=told)
    put_and_wait(files, b'{"n": 0}')

    def no_disk(descriptor: int, data: memoryview) -> int:
        if len(data) <= 5:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:5])

    def no_truncate(descriptor: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    write = os.write
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", no_disk)
        broken.setattr(os, "ftruncate", no_truncate)
        put_and_wait(files, b'{"n": 1}')
    put_and_wait(files, b'{"n": 2}')
    torn, after = sorted(tmp_path.iterdir())
    assert torn.read_bytes() == b'{"n": 0}\n{"n":'
    assert after.read_bytes() == b'{"n": 2}\n'
    assert (found["written"], found["disk"]) == (2, 1)
    assert recover(tmp_path) == 1  # nobody holds it any more
    files.close()
    assert lines(tmp_path) == [b'{"n": 0}', b'{"n": 2}']


def test_a_file_that_was_removed_is_not_written_to_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, removed = fcntl.flock, []

    def slow_flock(descriptor: int, how: int) -> None:
        """Somebody without a lock on the folder removes the file before it is locked."""
        for file in tmp_path.iterdir():
            if not removed:
                file.unlink()
                removed.append(file)
        flock(descriptor, how)

    files = AuditFiles(tmp_path)
    monkeypatch.setattr(fcntl, "flock", slow_flock)
    put_and_wait(files, b'"first"')
    assert len(removed) == 1
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "moved")  # which is still the same file
    put_and_wait(files, b'"second"')
    (tmp_path / "moved").unlink()
    put_and_wait(files, b'"third"')
    assert lines(tmp_path) == [b'"third"']
    files.close()


def test_what_is_made_is_written_while_the_next_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_files, "_MAKING_SECONDS", 0.0)
    files = AuditFiles(tmp_path)
    held, go_on, slow = threading.Event(), threading.Event(), threading.Event()

    def wait(begun: threading.Event) -> bytes:
        begun.set()
        assert go_on.wait(10)
        return b"waited"

    files.put(lambda: wait(held), 1)
    assert held.wait(10)
    files.put(lambda: b"made", 1)  # in one batch with the next
    files.put(lambda: go_on.clear() or wait(slow), 1)  # type: ignore[func-returns-value]
    go_on.set()
    assert slow.wait(10)
    assert lines(tmp_path) == [b"waited", b"made"]
    go_on.set()
    files.close()
