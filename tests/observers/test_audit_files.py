"""Whole lines, whatever happens to the process or the disk."""

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

from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts, Sizes, recover

_WRITER = """
import json, sys
from pathlib import Path
from stream_aligner_proxy.observers.audit_files import AuditFiles, Sizes
files = AuditFiles(Path(sys.argv[1]), Sizes(file=int(sys.argv[2]), keep=1000))
number = 0
while True:
    line = json.dumps({"n": number, "text": "x" * (number * 7919 % 20000)}).encode()
    files.put(lambda line=line: line, len(line))
    number += 1
    if number % 50 == 0:
        print(number, flush=True)
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
            [sys.executable, "-c", _WRITER, str(folder), str(10**9)], stdout=subprocess.PIPE
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
    # One that is being written is left alone, though its last line is not whole just now.
    (alive,) = (file for file in tmp_path.iterdir() if file != dead)
    with alive.open("ab") as half:
        half.write(b'{"half": ')
    second = AuditFiles(tmp_path)
    assert alive.read_bytes() == b'{"half": '
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
            [sys.executable, "-c", _WRITER, str(tmp_path), "200000"], stdout=subprocess.PIPE
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
