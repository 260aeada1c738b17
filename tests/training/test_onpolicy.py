"""Answers of a served upstream, corrected by a served teacher, become rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.servers import refused_address, serve_in_thread
from training.data.__main__ import main as data
from training.onpolicy import main

SAID = "Ana has three apples. Two and two are five. That is all."
RIGHT = "Ana has three apples. Two and two are four. That is all."
QUESTIONS = ["How many apples?", "And now?", "Once more?"]


@pytest.fixture
def upstream() -> Iterator[tuple[ScriptedUpstream, str]]:
    fake = ScriptedUpstream(Script((Rule("", when="Once", finish_reason="length"), Rule(SAID))))
    with serve_in_thread(fake) as address:
        yield fake, f"{address}/v1"


@pytest.fixture
def teacher() -> Iterator[tuple[ScriptedUpstream, str]]:
    fake = ScriptedUpstream(Script((Rule(RIGHT, when="(?s)The conversation.*The answer"),)))
    with serve_in_thread(fake) as address:
        yield fake, f"{address}/v1"


def command(folder: Path, upstream: str, teacher: str) -> list[str]:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": q}) + "\n" for q in QUESTIONS))
    return [
        "--questions", str(file), "--out", str(folder / "out" / "corrections.jsonl"),
        "--upstream", upstream, "--model", "scripted",
        "--teacher", teacher, "--teacher-model", "scripted", "--concurrency", "2",
    ]  # fmt: skip


def test_what_the_upstream_says_is_corrected_and_becomes_rows(
    tmp_path: Path,
    upstream: tuple[ScriptedUpstream, str],
    teacher: tuple[ScriptedUpstream, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "sk-secret")
    line = command(tmp_path, upstream[1], teacher[1])
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "2 of 3 questions" in said
    assert "left out: 1 x upstream: ended with 'length'" in said
    assert "sk-secret" not in said
    file = tmp_path / "out" / "corrections.jsonl"
    found = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(one["answer"], one["correction"]) for one in found] == [(SAID, RIGHT)] * 2
    assert teacher[0].requests[0].headers["authorization"] == "Bearer sk-secret"
    assert "authorization" not in upstream[0].requests[0].headers

    rows = tmp_path / "rows"
    assert data(["build", "--source", f"corrections:{file}", "--out", str(rows)]) == 0
    made = [
        json.loads(text)
        for shard in rows.glob("*/sentence-*.jsonl")
        for text in shard.read_text().splitlines()
    ]
    fixed = {row["correction"] for row in made if row["kind"] == "fix"}
    assert fixed == {"Two and two are four."}
    assert any(row["kind"] == "keep" for row in made)


def test_it_goes_on_where_it_stopped(
    tmp_path: Path, upstream: tuple[ScriptedUpstream, str], teacher: tuple[ScriptedUpstream, str]
) -> None:
    line = command(tmp_path, upstream[1], teacher[1])
    file = tmp_path / "out" / "corrections.jsonl"
    assert main(line) == 0
    whole = file.read_text().splitlines(keepends=True)
    # Stopped in the middle of writing its second line.
    file.write_text(whole[0] + whole[1][:20])
    asked = len(teacher[0].requests)
    assert main(line) == 0
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(whole)
    assert len(teacher[0].requests) == asked + 1


def test_what_is_wrong_is_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command(tmp_path, "http://unused.invalid", "http://unused.invalid")
    bad = tmp_path / "questions.jsonl"
    bad.write_text('{"question": "a"}\n{"answer": "b"}\n')
    assert main(line) == 2
    assert "questions.jsonl:2" in capsys.readouterr().err
    bad.write_text("".join(json.dumps({"question": f"q{n}"}) + "\n" for n in range(60)))
    line[line.index("--upstream") + 1] = f"{refused_address()}/v1"
    assert main(line) == 3
    assert "20 failures in a row, the last: upstream: ConnectError" in capsys.readouterr().err


def test_a_server_that_fails_now_and_then_does_not_end_it(
    tmp_path: Path, teacher: tuple[ScriptedUpstream, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake = ScriptedUpstream(
        Script((Rule("", when="now", fault=Fault(status=500, body="busy")), Rule(SAID)))
    )
    with serve_in_thread(fake) as address:
        assert main(command(tmp_path, f"{address}/v1", teacher[1])) == 0
    said = capsys.readouterr().out
    assert "2 of 3" in said
    assert "1 x upstream: status 500" in said
