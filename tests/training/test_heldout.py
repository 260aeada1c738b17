"""Measuring an aligner on held-out rows: the numbers, the plots, and a real checkpoint."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.heldout.__main__ import main
from training.heldout.plots import reliability, shares
from training.heldout.report import Report
from training.heldout.scores import Judged, Share, by_source, likeness, score

ALIGNER = Path(__file__).parents[2] / "stream_aligner_proxy" / "demo" / "models" / "aligner"
needs_model = pytest.mark.skipif(not ALIGNER.is_dir(), reason="the demo models are not there")


def row(
    sentence: str, expected: str, got: str | None, chance: float = 0.5, source: str = "s"
) -> Judged:
    return Judged(source, sentence, expected, got, sentence == expected, False, False, chance)


ROWS = [
    row("a", "a", "a", 0.9),  # kept, rightly
    row("b", "b", "x", 0.4),  # changed, wrongly
    row("c", "d", "d", 0.1),  # fixed
    row("e", "f", "e", 0.8, "t"),  # kept, wrongly
    row("g", "h", "i", 0.2, "t"),  # found, not fixed
    row("j", "k", None, 0.2, "t"),  # no verdict
]


def test_each_share_counts_what_it_says() -> None:
    scores = score(ROWS)
    assert (scores.keep_precision.part, scores.keep_precision.whole) == (1, 2)
    assert (scores.keep_recall.part, scores.keep_recall.whole) == (1, 2)
    assert (scores.over_correction.part, scores.over_correction.whole) == (1, 2)
    assert (scores.found.part, scores.found.whole) == (3, 4)
    assert (scores.fixed.part, scores.fixed.whole) == (1, 4)
    assert (scores.exact.part, scores.exact.whole) == (2, 6)
    assert (scores.unreadable.part, scores.unreadable.whole) == (1, 6)


def test_ending_the_reply_is_part_of_what_is_expected() -> None:
    ended = Judged("s", "a", "a", "a", keep=False, ends=True, got_end=True, keep_chance=0.1)
    missed = Judged("s", "a", "a", "a", keep=False, ends=True, got_end=False, keep_chance=0.1)
    scores = score([ended, missed])
    assert (scores.found.part, scores.fixed.part) == (1, 1)


def test_a_source_has_its_own_scores() -> None:
    own = by_source(ROWS)
    assert list(own) == ["s", "t"]
    assert (own["s"].rows, own["t"].rows) == (3, 3)
    assert own["t"].keep_recall.whole == 0
    assert math.isnan(own["t"].keep_recall.value)


def test_who_is_as_sure_as_right_is_calibrated() -> None:
    even = [row("a", "a", "a", 0.75)] * 3 + [row("a", "b", "a", 0.75)]
    assert score(even).calibration_error == pytest.approx(0)
    sure = [row("a", "b", "a", 1.0)] * 4
    assert score(sure).calibration_error == pytest.approx(1)
    assert score(sure).brier == pytest.approx(1)


@given(st.integers(0, 50), st.integers(1, 50))
def test_an_interval_holds_its_share_and_stays_within_0_and_1(part: int, more: int) -> None:
    share = Share(part, part + more)
    low, high = share.interval
    assert 0 <= low <= share.value + 1e-9
    assert share.value - 1e-9 <= high <= 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_likeness_is_symmetric_and_1_for_equal_texts_only(a: str, b: str) -> None:
    assert likeness(a, b) == likeness(b, a)
    assert 0 <= likeness(a, b) <= 1
    assert (likeness(a, b) == 1) is (a == b)


def test_the_plots_are_sound_and_show_every_bin_and_source() -> None:
    scores = score(ROWS)
    plot = ElementTree.fromstring(reliability(scores.bins))
    space = "{http://www.w3.org/2000/svg}"
    assert len(plot.findall(f"{space}circle")) == sum(1 for b in scores.bins if b.count)
    bars = ElementTree.fromstring(shares(by_source(ROWS) | {"<x> & y": scores}))
    assert "<x> & y" in "".join(bars.itertext())


def test_the_report_is_written_in_three_forms(tmp_path: Path) -> None:
    report = Report({"aligner": "<b>"}, score(ROWS), by_source(ROWS), ROWS[3:])
    report.write(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["overall"]["fixed"] == {"part": 1, "of": 4, "value": 0.25}
    assert data["sources"]["t"]["keep_recall"]["value"] is None
    assert "| fixed | 0.250" in (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<svg") == 2


@needs_model
def test_a_checkpoint_is_measured_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "Ana bakes 87 cakes. Later she sells 56 in the morning. How many cakes are left?"
    first = "Ana bakes 87 cakes."
    right, wrong = (f"She sells 56 in the morning, so 87 - 56 = {n} cakes." for n in (31, 41))
    rows = [
        {"question": question, "prefix": first, "last": last, "correction": right, "source": name}
        for last, name in ((right, "right"), (wrong, "wrong"))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "report"
    arguments = ["--aligner", str(ALIGNER), "--rows", str(file), "--out", str(out)]
    assert main(arguments) == 0
    assert "keep precision" in capsys.readouterr().out
    data = json.loads((out / "report.json").read_text())
    assert data["facts"]["profile"] == "compact"
    assert data["sources"]["right"]["keep_recall"]["value"] == 1
    assert data["sources"]["wrong"]["fixed"]["value"] == 1


def test_what_is_wrong_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q"}\n')
    arguments = ["--aligner", str(tmp_path), "--rows", str(rows), "--out", str(tmp_path / "r")]
    assert main(arguments) == 2
    assert "no profile is known" in capsys.readouterr().err
    if ALIGNER.is_dir():
        assert main(["--aligner", str(ALIGNER), *arguments[2:]]) == 2
        assert "rows.jsonl:1: KeyError" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
