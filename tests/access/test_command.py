"""`stream-aligner key`, and the file of keys that it writes."""

import io
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from stream_aligner_proxy.access.keyring import Keyring
from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.cli import main
from stream_aligner_proxy.core.errors import Unauthorized
from stream_aligner_proxy.settings.access import AccessSettings

COMMAND = [sys.executable, "-m", "stream_aligner_proxy.cli", "key"]
HASH = "sha256:" + 64 * "0"
Printed = pytest.CaptureFixture[str]


def key(*arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def add(file: Path, printed: Printed, *arguments: str, name: str = "team") -> str:
    """The new key, which is all that was printed."""
    assert main(["key", "new", "--name", name, "--file", str(file), *arguments]) == 0
    return printed.readouterr().out.removesuffix("\n")


def ring(file: Path) -> Keyring:
    return Keyring((), file, AccessSettings(keys_file=file).from_file)


def test_a_new_key_is_printed_once_beside_its_hash(tmp_path: Path) -> None:
    done = key("new", "--name", "team-a")
    assert (done.returncode, done.stderr) == (0, "")
    shown, _, said = done.stdout.partition("\n")
    assert shown not in said
    file = tmp_path / "keys.yaml"
    file.write_text(said[said.index("- name") :])
    assert ring(file).identify(shown).name == "team-a"


def test_with_a_file_only_the_key_is_on_standard_output_and_only_its_hash_in_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.yaml"
    done = key("new", "--name", "team-a", "--file", str(file))
    assert done.returncode == 0
    made = done.stdout.removesuffix("\n")
    assert "\n" not in made
    assert made not in done.stderr + file.read_text()
    assert yaml.safe_load(file.read_text()) == [{"name": "team-a", "hash": hash_of(made)}]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_keys_are_added_behind_what_is_there(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "keys.yaml"
    old = new_key()
    before = f"# Ours.\n- {{name: team, hash: '{hash_of(old)}', models: [m]}}  # the first"
    file.write_text(before)
    file.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to("keys.yaml")
    second, other = add(link, capsys), add(link, capsys, name="123")
    assert link.is_symlink()
    assert file.read_text().startswith(before + "\n- name: team\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    keys = ring(file)
    assert [keys.identify(one).name for one in (old, second, other)] == ["team", "team", "123"]
    assert sorted(os.listdir(tmp_path)) == ["keys.yaml", "link.yaml"]


def test_keys_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("[]\n")
    names = [f"team-{number}" for number in range(12)]

    def make(name: str) -> int:
        return main(["key", "new", "--name", name, "--file", str(file)])

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(make, names)) == {0}
    assert sorted(one.name for one in ring(file).keys.all) == sorted(names)


def test_a_key_is_good_until_the_date_that_it_got(tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "keys.yaml"
    made = add(file, capsys, "--expires", "2999-01-01")
    add(file, capsys, "--expires", "2999-01-01T12:30:00+02:00")
    days, hours = (one.expires for one in ring(file).keys.all)
    assert days is not None
    assert hours is not None
    assert (days % 86400, hours % 86400) == (0.0, 10.5 * 3600)
    assert days > time.time()
    assert ring(file).identify(made).name == "team"
    file.write_text(file.read_text().replace("2999", "1999"))
    with pytest.raises(Unauthorized, match="expired"):
        ring(file).identify(made)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (("--name", ""), None, "--name"),
        (("--name", "team a"), None, "--name"),
        (("--name", "t\u00e9am"), None, "--name"),
        (("--name", "a", "--expires", "soon"), None, "--expires"),
        (("--name", "a", "--expires", "2001-01-01"), None, "has passed"),
        (("--name", "a"), "- {name: a}\n", "keys[0].hash"),
        (("--name", "a"), "", "must be a list"),
        (("--name", "a"), f"[{{name: a, hash: '{HASH}'}}]\n", "by hand"),
        (("--name", "a"), f"  - name: a\n    hash: {HASH}\n", "by hand"),
    ],
)
def test_what_is_refused_changes_nothing_and_shows_no_key(
    arguments: tuple[str, ...], content: str | None, said: str, tmp_path: Path, capsys: Printed
) -> None:
    file = tmp_path / "keys.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["key", "new", *arguments, "--file", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("stream-aligner: ")
    assert len(printed.err.splitlines()) == 1
    assert said in printed.err
    assert "sk-sa-" not in printed.err
    if content is None:
        assert os.listdir(tmp_path) == []
    else:
        assert file.read_text() == content
        assert os.listdir(tmp_path) == ["keys.yaml"]


def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("[]\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["key", "new", "--name", "a", "--file", str(file)]) == 2
    assert "--file: " in capsys.readouterr().err
    assert (file.read_text(), os.listdir(tmp_path)) == ("[]\n", ["keys.yaml"])
    assert main(["key", "new", "--name", "a", "--file", str(tmp_path / "none" / "keys")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "--file: " in printed.err


def test_a_key_from_elsewhere_is_hashed_and_a_made_up_one_is_not(
    capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_key()
    for line in (made, f"{made}\r\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        assert main(["key", "hash"]) == 0
        assert capsys.readouterr().out == f"{hash_of(made)}\n"
    for line in ("", "secret\n", "x" * 31):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line))
        assert main(["key", "hash"]) == 2
        printed = capsys.readouterr()
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
        assert line.strip() == "" or line.strip() not in printed.err


@pytest.mark.parametrize("arguments", [[], ["old"], ["new"]])
def test_what_is_missing_is_told(arguments: list[str], capsys: Printed) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["key", *arguments])
    assert raised.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_help_shows_how_keys_are_made_exchanged_and_limited(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["key", "--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    for word in ("key new --name", "--expires", "--file", "key hash", "keys_file", "OLD", "models"):
        assert word in shown
    with pytest.raises(SystemExit):
        main(["key", "new", "--help"])
    assert "2027-03-01" in capsys.readouterr().out
