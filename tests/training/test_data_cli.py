"""The command line of the training data."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.training.making import jsonl, run
from training.data.__main__ import main
from training.data.config import BuildConfig, FilterConfig, SourceConfig, SplitConfig
from training.data.sources.registry import SOURCES


def test_the_command_builds_from_a_config(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(
        f"sources: ['corrections:{mine}']\nkeep_share: 0.3\nfilters: {{max_edit: 0.9}}\n"
    )
    out = tmp_path / "out"
    assert main(["build", "--config", str(config), "--out", str(out), "--seed", "5"]) == 0
    told = json.loads((out / "report.json").read_text())["config"]
    assert (told["keep_share"], told["filters"]["max_edit"], told["seed"]) == (0.3, 0.9, 5)
    assert "fingerprint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["build", "--source", "other:x", "--out", "OUT"], 2, "no source 'other'"),
        (["build", "--source", "pairs:none.jsonl", "--out", "OUT"], 1, "no such file or folder"),
        (["build", "--source", "pairs", "--out", "OUT"], 1, "not on the hub: give a path"),
        (["build", "--config", "none.yaml", "--out", "OUT"], 2, "none.yaml cannot be read"),
        (["report", "none.jsonl"], 1, "no such file or folder"),
        (["convert", "none.jsonl", "OUT.csv"], 1, "out.csv: rows are written as"),
    ],
)
def test_a_command_that_fails_says_why_in_a_line(
    arguments: list[str],
    status: int,
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([one.replace("OUT", str(tmp_path / "out")) for one in arguments]) == status
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1


def test_rows_are_split_reported_and_converted(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    built = run(mine, tmp_path / "out", keep_share=None)
    split, report = tmp_path / "split", tmp_path / "report"
    arguments = ["--validation", "0.2", "--test", "0.3", "--out", str(split)]
    assert main(["split", str(tmp_path / "out"), *arguments]) == 0
    found = {path.parent.name: path for path in split.glob("*/sentence.jsonl")}
    assert set(found) == {"train", "validation", "test"}
    assert main(["report", str(split), "--out", str(report)]) == 0
    told = json.loads((report / "report.json").read_text())
    assert told["fingerprint"] == built["fingerprint"]
    packed, back = tmp_path / "rows.parquet", tmp_path / "rows.jsonl"
    assert main(["convert", str(found["train"]), str(packed)]) == 0
    assert main(["convert", str(packed), str(back)]) == 0
    assert back.read_bytes() == found["train"].read_bytes()
    assert "fingerprint" in capsys.readouterr().out


def test_a_bad_row_stops_what_only_reads_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"question": "Q?", "prefix": "", "last": ""}])
    assert main(["report", str(path)]) == 1
    assert f"{path}:1: 'last' is empty" in capsys.readouterr().err


def test_plots_are_drawn_where_matplotlib_is_there(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    run(mine, tmp_path / "out")
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "![edits.png]" in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "plain")]) == 0
    assert "no plots: matplotlib is not installed" in capsys.readouterr().out


def test_the_help_shows_how_and_the_sources_their_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    assert "--source NAME[:PATH]" in capsys.readouterr().out
    assert main(["sources"]) == 0
    told = capsys.readouterr().out
    assert "chosen, rejected" in told
    assert "htlou/stream-aligner" in told


def test_every_source_and_key_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training-data.md").read_text()
    sections = (BuildConfig, FilterConfig, SplitConfig, SourceConfig)
    keys = {one.name for section in sections for one in fields(section)}
    assert [key for key in sorted(keys) if key not in text] == []
    assert [name for name in SOURCES if f"`{name}`" not in text] == []
