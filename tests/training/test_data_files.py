"""Reading records and writing rows: formats, bad records, bad files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.records import Turn
from training.data import files, hub, writing
from training.data.files import DataError, Trouble
from training.data.rows import (
    KINDS,
    BadRecord,
    Example,
    Row,
    Whole,
    digest,
    from_dict,
    group_of,
    kind_of,
    to_dict,
)

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
BARE = TEXT.map(str.strip).filter(bool)
QUESTION = st.lists(st.builds(Turn, TEXT, TEXT), max_size=2).map(tuple)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    question, source, group = draw(QUESTION), draw(BARE), draw(BARE)
    if draw(st.booleans()):
        return Whole(question, draw(BARE), draw(st.just("") | BARE), source, group)
    last, end = draw(BARE), draw(st.booleans())
    correction = draw(st.sampled_from(("", last)) | BARE)
    kind = kind_of(last, correction, end)
    return Row(question, draw(st.just("") | TEXT), last, correction, end, kind, source, group)


def row(last: str = "It has 5.", correction: str = "It has 6.") -> Row:
    kind = kind_of(last, correction, False)
    return Row((Turn("user", "Legs?"),), "", last, correction, False, kind, "s", group_of("Legs?"))


def read(path: Path) -> list[tuple[str, Any]]:
    return [(place.rpartition("/")[2], record) for place, record in files.records(path)]


@given(examples())
def test_a_row_is_the_same_after_being_written(one: Example) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(one)))) == one


def test_a_row_needs_no_more_than_its_texts() -> None:
    found = from_dict({"question": "Legs?", "prefix": "", "last": " A. ", "correction": "A."})
    assert isinstance(found, Row)
    assert (found.last, found.kind, found.end, found.source) == ("A.", "keep", False, "rows")
    assert found.group == group_of("legs")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"question": ""}, "question is empty"),
        ({"question": None}, "question must be"),
        ({"question": [{"role": "user"}]}, "message 0 of the question"),
        ({"last": ""}, "'last' is empty"),
        ({"last": 5}, "'last' must be a text, not int"),
        ({"correction": None}, "no 'correction'"),
        ({"end": "yes"}, "'end' must be true or false"),
        ({"kind": "other"}, "'kind' must be one of"),
        ({"kind": "keep"}, "which 'last', 'correction' and 'end' contradict"),
        ({"prefix": "\ud800"}, "not UTF-8"),
    ],
)
def test_a_row_that_is_wrong_says_which_field(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        from_dict(to_dict(row()) | change)


def test_rows_that_differ_in_space_and_case_alone_are_the_same_to_a_reader() -> None:
    one, other = row(last="It has 5 legs."), row(last="it  has 5 LEGS.")
    assert digest(one) != digest(other)
    assert digest(one, normalised=True) == digest(other, normalised=True)
    plus, minus = row(last="2+2"), row(last="2-2")
    assert digest(plus, normalised=True) != digest(minus, normalised=True)


def test_questions_are_the_same_up_to_case_width_and_marks() -> None:
    assert group_of("How many legs?") == group_of("how  many LEGS")
    assert group_of("1 + 2") != group_of("1 + 3")
    assert group_of("?") != group_of("!")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_lines_of_json_are_read_plain_or_packed(tmp_path: Path, name: str) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\n\n{"a": "\xc3\xa9"}\n'
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(name[-2:], bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert read(tmp_path / name) == [(f"{name}:1", {"a": 1}), (f"{name}:3", {"a": "é"})]


def test_a_bad_line_is_named_and_the_next_one_read(tmp_path: Path) -> None:
    bad = [b"{oops", b"[1]", b'{"a": "\xff"}', b"[" * 100_000, b"1" * 5000]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*bad, b'{"a": 1}']))
    *troubles, (place, record) = read(tmp_path / "a.jsonl")
    assert [one for one, _ in troubles] == [f"a.jsonl:{at}" for at in range(1, 6)]
    reasons = [found.reason for _, found in troubles]
    assert reasons[0].startswith("not JSON: Expecting property name")
    assert reasons[1] == "not a JSON object"
    assert reasons[2] == "not UTF-8 at character 8"
    assert all(reason.startswith("not JSON") for reason in reasons[3:])
    assert (place, record) == ("a.jsonl:6", {"a": 1})


def test_a_document_is_a_list_or_an_object_of_lists(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": [{"a": 1}, 2], "y": [{"a": 3}]}')
    assert read(tmp_path / "a.json") == [
        ("a.json#0", {"a": 1}), ("a.json#1", Trouble("not a JSON object")), ("a.json#2", {"a": 3}),
    ]  # fmt: skip
    for text, why in (("{", "is not JSON"), ("5", "must hold a list"), ('{"a": 1}', "must hold")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataError, match=why):
            read(tmp_path / "b.json")


def test_tables_are_read_by_their_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"one\ntwo",2\n3,4,5\n6\n')
    assert read(tmp_path / "a.csv") == [
        ("a.csv:3", {"a": "one\ntwo", "b": "2"}),
        ("a.csv:4", Trouble("more fields than the header names")),
        ("a.csv:5", {"a": "6", "b": None}),
    ]
    (tmp_path / "a.tsv").write_text('a\tb\n"quoted\tx\n')
    assert read(tmp_path / "a.tsv") == [("a.tsv:2", {"a": '"quoted', "b": "x"})]


def test_a_field_beyond_all_measure_spoils_its_line_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n" + "x" * 200_000 + ",3\n4,5\n")
    first, trouble, last = read(tmp_path / "a.csv")
    assert isinstance(trouble[1], Trouble)
    assert "field limit" in trouble[1].reason
    assert (first[1], last[1]) == ({"a": "1", "b": "2"}, {"a": "4", "b": "5"})


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jsonl.gz", b"not packed", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "cannot be read"),
        ("a.jsonl.xz", b"not packed", "cannot be read"),
        ("a.txt", b"words", "cannot tell what it is"),
    ],
)
def test_a_file_that_is_broken_is_an_error_that_names_it(
    tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=why) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "LICENSE", "train.jsonl.gz"):
        (tmp_path / name).touch()
    assert [one.name for one in files.expand(tmp_path)] == ["a.csv", "b.jsonl", "train.jsonl.gz"]
    assert [one.name for one in files.expand(tmp_path, "train*")] == ["train.jsonl.gz"]
    with pytest.raises(DataError, match="nothing to read"):
        files.expand(tmp_path, "test*")
    with pytest.raises(DataError, match="no such file or folder"):
        files.expand(tmp_path / "none")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_rows_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    made = [row(), row(correction=""), row(correction="Zwölf 🕷.\nOr so.")]
    assert writing.write(tmp_path / "sub" / name, made) == 3
    assert [one for _, one in files.rows(tmp_path / "sub" / name)] == made
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [name]


def test_parquet_holds_whole_answers_and_nothing_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    whole = Whole((), "A.", "B.", "s", "g")
    writing.write(tmp_path / "a.parquet", [whole] * 2500)
    assert [one for _, one in files.rows(tmp_path / "a.parquet")] == [whole] * 2500
    assert writing.write(tmp_path / "b.parquet", []) == 0
    assert list(files.rows(tmp_path / "b.parquet")) == []
    with pytest.raises(DataError, match="not both"):
        writing.write(tmp_path / "c.parquet", [whole, row()])
    (tmp_path / "d.parquet").write_bytes(b"words")
    with pytest.raises(DataError, match="is not Parquet"):
        list(files.records(tmp_path / "d.parquet"))


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow: pip install"):
        writing.write(tmp_path / "a.parquet", [row()])


def test_without_datasets_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs `datasets`.*--source NAME:PATH"):
        list(hub.stream("aligner/aligner-20K", "train"))


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    def breaking() -> Any:
        yield row()
        raise KeyboardInterrupt

    (tmp_path / "a.jsonl").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        writing.write(tmp_path / "a.jsonl", breaking())
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_text() == "before"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.xz", "a"])
def test_rows_are_written_as_what_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="rows are written as"):
        writing.write(tmp_path / name, [row()])


def test_every_kind_follows_from_the_texts() -> None:
    told = [("A.", "A.", False), ("A.", "B.", False), ("A.", "", False), ("A.", "A. B.", False),
            ("A.", "", True)]  # fmt: skip
    assert {kind_of(*one) for one in told} == set(KINDS) - {"merge"}
