"""The build, from sources to shards and a report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.making import aside, jsonl, made, record, run
from training.config import ConfigError
from training.data.__main__ import main
from training.data.config import BuildConfig, FilterConfig, SplitConfig
from training.data.files import DataError
from training.data.pipeline import build
from training.data.rows import Row, Whole
from training.data.tally import Tally

pytestmark = pytest.mark.usefixtures("no_plots")

SAME = "A spider has eight legs. It has no wings."


def test_a_build_writes_shards_by_split_and_form_and_a_report(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = run(mine, out, split=SplitConfig(0.1, 0.2))
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {f"{split}/{form}-00000-of-00001.jsonl"
            for split in ("train", "validation", "test") for form in ("sentence", "whole")
            } | {"report.json", "report.md", "rejected.jsonl"} <= names  # fmt: skip
    assert json.loads((out / "report.json").read_text()) == data
    assert "| corrections | 200 |" in (out / "report.md").read_text()
    assert data["rows"] == len(made(out))
    assert sum(one["rows"] for one in data["splits"].values()) == data["rows"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_same_command_builds_the_same_files(mine: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(mine, tmp_path / name, seed=3)
    for path in sorted((tmp_path / "one").rglob("*.json*")):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()
    run(mine, tmp_path / "three", seed=4)
    assert made(tmp_path / "one") != made(tmp_path / "three")


def test_the_fingerprint_is_of_the_rows_and_not_of_their_order(mine: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep_share": None}
    one = run(mine, tmp_path / "one", seed=1, **options)["fingerprint"]
    assert one == run(mine, tmp_path / "two", seed=2, shard_rows=50, **options)["fingerprint"]
    found = made(tmp_path / "one")
    tally = Tally()
    for example in reversed(found):
        tally.add(example)
    assert tally.fingerprint == one
    tally.add(found[0])
    assert tally.fingerprint != one


def test_kept_rows_are_thinned_out_in_training_alone(mine: Path, tmp_path: Path) -> None:
    data = run(mine, tmp_path / "out", keep_share=0.5, split=SplitConfig(0.2, 0.2))
    train = Counter(one.kept for one in made(tmp_path / "out", "train/sentence*"))
    assert 0.35 < train[True] / train.total() < 0.65
    assert data["splits"]["train"]["keep_share"] == round(train[True] / train.total(), 4)
    test = Counter(one.kept for one in made(tmp_path / "out", "test/sentence*"))
    assert test[True] / test.total() > 0.85
    all_rows = data["rows"] + data["kept_rows_dropped_for_balance"]
    assert all_rows == data["read"]["corrections"]["rows"]


def test_no_question_stands_in_two_splits(mine: Path, tmp_path: Path) -> None:
    run(mine, tmp_path / "out", split=SplitConfig(0.3, 0.3))
    groups = [
        {one.group for one in made(tmp_path / "out", f"{split}/*")}
        for split in ("train", "validation", "test")
    ]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 200


def test_shards_are_of_the_size_asked_for(mine: Path, tmp_path: Path) -> None:
    run(mine, tmp_path / "out", shard_rows=50, keep_share=None, split=SplitConfig(0, 0))
    names = sorted(path.name for path in (tmp_path / "out" / "train").iterdir())
    assert names[0] == "sentence-00000-of-00012.jsonl"
    assert len(names) == 12 + 4
    with pytest.raises(DataError, match=r"shard_rows \(1\) would make"):
        run(mine, tmp_path / "other", shard_rows=1, keep_share=None)


def test_parquet_shards_hold_the_same_rows(mine: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    one = run(mine, tmp_path / "one")
    two = run(mine, tmp_path / "two", format="parquet")
    assert one["fingerprint"] == two["fingerprint"]
    assert made(tmp_path / "one") == made(tmp_path / "two", "*/*.parquet")


@pytest.mark.parametrize(("form", "kind"), [("sentence", Row), ("whole", Whole)])
def test_one_form_of_rows_can_be_asked_for(
    mine: Path, tmp_path: Path, form: str, kind: type
) -> None:
    data = run(mine, tmp_path / "out", form=form)
    assert {type(one) for one in made(tmp_path / "out")} == {kind}
    assert data["read"]["corrections"]["filtered"]["a form that was not asked for"] > 0


def test_what_was_seen_before_is_left_out(tmp_path: Path) -> None:
    plain = {"question": "Legs?", "answer": SAME, "correction": SAME}
    again = plain | {"question": "LEGS", "answer": SAME.upper(), "correction": SAME.upper()}
    data = run(jsonl(tmp_path / "mine.jsonl", [plain, plain]), tmp_path / "out")
    assert data["read"]["corrections"]["duplicates"] == 3
    data = run(jsonl(tmp_path / "mine.jsonl", [plain, again]), tmp_path / "two")
    assert data["read"]["corrections"]["duplicates"] == 0  # another question, by its marks
    again["question"] = "  legs?"
    data = run(jsonl(tmp_path / "mine.jsonl", [plain, again]), tmp_path / "three")
    assert data["read"]["corrections"]["duplicates"] == 3


def test_a_bad_record_is_named_counted_and_set_aside(tmp_path: Path) -> None:
    records = [record(at) for at in range(9)]
    path = jsonl(tmp_path / "mine.jsonl", [*records, {"question": "Q?", "answer": "A \ud800."}])
    with path.open("a") as more:
        more.write("{oops\n")
    data = run(path, tmp_path / "out", max_rejected=0.2)
    assert sum(data["read"]["corrections"]["rejected"].values()) == 2
    first, second = aside(tmp_path / "out" / "rejected.jsonl")
    assert first["at"] == f"{path}:10"
    assert "no 'correction' or 'corrected'" in first["reason"]
    assert first["row"]["question"] == "Q?"
    assert (second["at"], second["stage"]) == (f"{path}:11", "read")
    assert second["reason"].startswith("not JSON")


def test_half_a_character_spoils_its_record_alone(tmp_path: Path) -> None:
    bad = record(0) | {"correction": "It is \ud83d."}
    path = jsonl(tmp_path / "mine.jsonl", [record(1), bad])
    data = run(path, tmp_path / "out", max_rejected=0.5)
    (one,) = aside(tmp_path / "out" / "rejected.jsonl")
    assert one["reason"] == "a text is not UTF-8: '\\ud83d' at character 6"
    assert data["rows"] > 0


def test_too_many_bad_records_are_an_error_that_leaves_them_to_be_seen(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [record(1), {"question": "Q?"}, {"question": "R?"}])
    with pytest.raises(DataError, match=r"2 of 3 records are bad, more than max_rejected \(0.01\)"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(aside(tmp_path / "out.rejected.jsonl")) == 2


def test_a_correction_that_is_too_unlike_is_counted_and_set_aside(tmp_path: Path) -> None:
    pair = {"question": "Legs?", "rejected": "A spider has six legs.", "chosen": "Go ask a vet."}
    path = jsonl(tmp_path / "mine.jsonl", [pair])
    build(BuildConfig(sources=[f"pairs:{path}"]), tmp_path / "out", say=lambda _: None)
    (one,) = aside(tmp_path / "out" / "rejected.jsonl")
    assert one["reason"] == "too little in common to be a correction"
    assert one["row"] == {"last": "A spider has six legs.", "correction": "Go ask a vet."}


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        (FilterConfig(max_question_chars=5), "question too long"),
        (FilterConfig(max_prefix_chars=5), "prefix too long"),
        (FilterConfig(max_last_chars=18), "sentence too long"),
        (FilterConfig(max_answer_chars=30), "answer too long"),
        (FilterConfig(min_edit=0.9), "too small a change"),
        (FilterConfig(max_edit=0.05), "too great a change"),
        (FilterConfig(leave_out=("fix",)), "kind fix is not wanted"),
    ],
)
def test_a_row_out_of_bounds_is_left_out_with_the_reason(
    mine: Path, tmp_path: Path, filters: FilterConfig, reason: str
) -> None:
    try:
        run(mine, tmp_path / "out", filters=filters)
        path = tmp_path / "out" / "rejected.jsonl"
    except DataError as error:
        assert "no rows are left" in str(error)  # noqa: PT017
        path = tmp_path / "out.rejected.jsonl"
    found = {one["reason"] for one in aside(path) if one["stage"] == "filter"}
    assert found == {reason}


def test_rows_are_measured_in_tokens_where_a_tokenizer_is_named(mine: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="tokens need transformers")
    folder = "stream_aligner_proxy/demo/models/aligner"
    tokenizer = Path(__file__).resolve().parents[2] / folder
    if not (tokenizer / "tokenizer.json").exists():
        pytest.skip("the demo's tokenizer is not there")
    filters = FilterConfig(tokenizer=str(tokenizer), max_tokens=60)
    data = run(mine, tmp_path / "out", filters=filters)
    assert data["read"]["corrections"]["filtered"]["too many tokens"] > 0
    with pytest.raises(DataError, match="cannot be loaded"):
        run(mine, tmp_path / "two", filters=FilterConfig(tokenizer=str(tmp_path / "none")))


def test_a_folder_that_is_not_empty_is_left_alone(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not empty"):
        run(mine, tmp_path)
    (tmp_path / "out").mkdir()
    run(mine, tmp_path / "out")
    assert (tmp_path / "out" / "report.json").exists()


def test_a_build_that_breaks_leaves_nothing(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.data.dealing.write", full)
    assert main(["build", "--source", f"corrections:{mine}", "--out", str(tmp_path / "out")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "sources: name at least one"),
        ({"sources": [{"name": "other"}]}, r"sources\[0\].name: no source 'other'; known: corr"),
        ({"sources": [{"name": "pairs", "limit": 0}]}, r"sources\[0\].limit must be at least 1"),
        ({"sources": ["pairs"], "keep_share": 1.0}, "keep_share must be below 1"),
        ({"sources": ["pairs"], "split": SplitConfig(0.6, 0.5)}, "leave nothing to train on"),
        ({"sources": ["pairs"], "split": SplitConfig(near=0.1)}, "split.near must be at least"),
        ({"sources": ["pairs"], "form": "half"}, "form must be both"),
        ({"sources": ["pairs"], "format": "csv"}, "format must be jsonl or parquet"),
        ({"sources": ["pairs"], "filters": FilterConfig(max_tokens=0)}, "filters.max_tokens"),
        ({"sources": ["pairs"], "filters": FilterConfig(leave_out="fix")}, "filters.leave_out"),
    ],
)
def test_a_wrong_configuration_names_its_key(
    data: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why):
        build(BuildConfig(**data), tmp_path / "out")


def test_the_recipe_reads_what_the_build_of_the_demo_world_writes(tmp_path: Path) -> None:
    recipe: Any = pytest.importorskip("training.recipe.rows", reason="there is no recipe here")
    config = BuildConfig(sources=[{"name": "demo", "limit": 200}])
    build(config, tmp_path / "out", say=lambda _: None)
    train, held = recipe.files(tmp_path / "out")
    for paths, split in ((train, "train"), (held, "validation")):
        ours = made(tmp_path / "out", f"{split}/*")
        read = list(recipe.read(paths))
        assert [one.kept for one in read] == [one.kept for one in ours]
        assert [one.group for one in read] == [one.group for one in ours]
        assert [one.review.conversation for one in read] == [one.question for one in ours]
        assert [one.correction for one in read] == [one.correction for one in ours]
        assert [one.end for one in read] == [isinstance(o, Row) and o.end for o in ours]
