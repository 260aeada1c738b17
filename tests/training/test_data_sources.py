"""Every source: its columns become rows, and a record that is wrong says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.core.records import Committed, Turn
from training.data.files import DataError
from training.data.make import Maker
from training.data.rows import BadRecord, Example, Row, SetAside, Whole, from_dict, to_dict
from training.data.sources import audit
from training.data.sources.registry import SOURCES, source
from training.data.sources.source import Source

# Every name that an adapter looks for.
COLUMNS = (
    "question", "prompt", "instruction", "messages", "answer", "response", "original", "correction",
    "corrected", "chosen", "rejected", "steps", "wrong", "end", "prefix", "last", "kind", "group",
    "v", "units", "conversation", "response_0", "response_1", "safer_response_id",
    "is_response_0_safe", "is_response_1_safe", "is_safe", "completions", "Subject", "Question",
    "Options", "Model_Solution_Steps", "Model_Solution_Correctness",
    "Model_Solution_First_Error_Step", "Model_Solution_Rectified_First_Error_Step",
    "classification", "original_process", "modified_process", "original_question", "input",
    "mistake_index", "correct", "ground_truth", "solution", "is_correct", "problem",
    "student_incorrect_solution", "incorrect_index", "student_correct_response", "passages",
    "feedback", "corrected-prediction", "prediction 1", "Best Answer", "Correct Answers",
    "Incorrect Answers", "toxic", "neutral1", "neutral2", "type", "final_label", "completion",
    "response_factuality", "revised_response", "sentences", "rows", "whole", "at", "sentence",
    "role", "content", "overall_score", "index", "text", "outcome", "branch",
)  # fmt: skip
TEXTS = st.sampled_from(
    ("", " ", "A. B.", "user", "1", "correct", "incorrect", "keep", "\n\nHuman: a\n\nAssistant: b",
     "Step 1: one", "[ ; stack: [", "1_full_compliance", "\ud800")
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from((0, 1, 2, -1, 1.5)), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=4),
    ),
    max_leaves=8,
)


def read(name: str, record: Mapping[str, Any], **options: Any) -> list[Example]:
    one = source(name)
    return list(one.read(record, Maker(one.name, **{"similarity": one.similarity} | options)))


def rows(name: str, record: Mapping[str, Any], **options: Any) -> list[tuple[str, str, str, str]]:
    """Prefix, sentence, correction and kind of each sentence row."""
    return [
        (one.prefix, one.last, one.correction, one.kind + ("!" if one.end else ""))
        for one in read(name, record, **options)
        if isinstance(one, Row)
    ]


def whole(name: str, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    made = read(name, record)
    return [(one.answer, one.correction) for one in made if isinstance(one, Whole)]


@pytest.mark.parametrize("one", SOURCES.values(), ids=lambda one: one.name)
@settings(max_examples=150)
@given(data=st.data())
def test_a_record_gives_rows_or_says_what_is_wrong_with_it(one: Source, data: Any) -> None:
    # Mostly the names this source looks for, so that more than the first is reached.
    own = [name for name in COLUMNS if name in one.columns] or ["question"]
    record = data.draw(st.dictionaries(st.sampled_from(own), VALUES)) | data.draw(
        st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=3)
    )
    made = outcome(one, record)
    assert isinstance(made, list) or made  # a reason that says something
    for example in made if isinstance(made, list) else ():
        assert to_dict(example)["source"]


def outcome(one: Source, record: Mapping[str, Any]) -> list[Example] | str:
    """The rows, or why there are none."""
    try:
        return list(one.read(record, Maker(one.name)))
    except (BadRecord, SetAside, DataError) as error:
        return str(error)


def test_a_corrected_answer_gives_its_sentences_and_the_whole() -> None:
    record = {"question": "Legs?", "answer": "It has 5. Sure.", "correction": "It has 6. Sure."}
    assert rows("corrections", record) == [
        ("", "It has 5.", "It has 6.", "fix"),
        ("It has 6.", "Sure.", "Sure.", "keep"),
    ]
    assert whole("corrections", record) == [("It has 5. Sure.", "It has 6. Sure.")]


def test_the_published_aligner_set_is_read_by_its_hub_name() -> None:
    record = {"question": "Legs?", "answer": "It has 5.", "correction": "It has 6."}
    assert rows("aligner/aligner-20K", record) == [("", "It has 5.", "It has 6.", "fix!")]


def test_an_edit_that_leaves_little_counts_as_a_pair() -> None:
    record = {
        "question": "Legs?",
        "original": "I like tea a lot. Let us talk about that.",
        "edited": "A spider has eight legs. Count them in pairs.",
    }
    assert rows("corrections", record) == []
    assert len(whole("corrections", record)) == 1


def test_a_pair_gives_its_common_beginning_and_first_difference() -> None:
    record = {
        "question": "Legs?",
        "rejected": "Good question. A spider has six legs. Bye.",
        "chosen": "Good question. A spider has eight legs. They come in pairs.",
    }
    assert rows("pairs", record) == [
        ("", "Good question.", "Good question.", "keep"),
        ("Good question.", "A spider has six legs.", "A spider has eight legs.", "fix"),
    ]
    make = Maker("pairs", similarity=0.9)
    made = list(source("pairs").read(record, make))
    assert [one.kept for one in made if isinstance(one, Row)] == [True]
    assert make.left_out == [("A spider has six legs.", "A spider has eight legs.")]


def test_a_pair_may_be_conversations() -> None:
    question = [{"role": "user", "content": "Legs?"}]
    record = {
        "prompt": "Legs?",
        "chosen": [*question, {"role": "assistant", "content": "It has 8 legs."}],
        "rejected": [*question, {"role": "assistant", "content": "It has 6 legs."}],
    }
    assert rows("ultrafeedback", record) == [("", "It has 6 legs.", "It has 8 legs.", "fix!")]


def test_labelled_steps_keep_the_right_ones_and_correct_the_wrong_one() -> None:
    record = {
        "question": "2 + 3 + 4?",
        "steps": ["2 + 3 is 5.", "5 + 4 is 8.", "So 8."],
        "wrong": 1,
        "correction": "5 + 4 is 9.",
    }
    assert rows("steps", record) == [
        ("", "2 + 3 is 5.", "2 + 3 is 5.", "keep"),
        ("2 + 3 is 5.", "5 + 4 is 8.", "5 + 4 is 9.", "fix"),
    ]
    assert rows("steps", record | {"end": True})[-1][-1] == "fix!"
    assert [row[-1] for row in rows("steps", record | {"wrong": None})] == ["keep"] * 3
    with pytest.raises(BadRecord, match="'wrong' must be"):
        read("steps", record | {"wrong": 3})


def test_the_published_sentence_set_keeps_its_prefix() -> None:
    record = {"question": "Legs?", "prefix": "Hm. ", "last": " It has 5.", "correction": ""}
    assert rows("htlou/stream-aligner", record) == [("Hm.", "It has 5.", "", "delete")]


def test_transcripts_are_read_as_conversations() -> None:
    head = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Legs?\n\nAssistant: "
    record = {"chosen": head + "A spider has 8 legs.", "rejected": head + "A spider has 6 legs."}
    made = read("Anthropic/hh-rlhf", record)
    assert made[0].question == (
        Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Legs?"),
    )  # fmt: skip
    assert rows("hh-rlhf", record) == [("", "A spider has 6 legs.", "A spider has 8 legs.", "fix!")]


def test_the_safer_answer_corrects_only_where_it_is_safe() -> None:
    record = {
        "prompt": "Legs?",
        "response_0": "A spider has 6 legs.",
        "response_1": "A spider has 8 legs.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "safer_response_id": 1,
    }
    assert rows("pku-saferlhf", record)[0][2] == "A spider has 8 legs."
    with pytest.raises(SetAside, match="neither answer is safe"):
        read("pku-saferlhf", record | {"is_response_1_safe": False})


def test_safe_answers_are_kept_and_unsafe_ones_teach_nothing() -> None:
    record = {"prompt": "Legs?", "response": "It has 8.", "is_safe": True}
    assert rows("beavertails", record) == [("", "It has 8.", "It has 8.", "keep")]
    with pytest.raises(SetAside):
        read("beavertails", record | {"is_safe": False})


def test_the_best_completion_corrects_the_worst() -> None:
    scored = [
        {"response": "A spider has 6 legs.", "overall_score": 2.0},
        {"response": "Hm.", "overall_score": 3.0},
        {"response": "A spider has 8 legs.", "overall_score": 9.0},
    ]
    record = {"instruction": "Legs?", "completions": scored}
    assert rows("ultrafeedback", record)[0][1:3] == ("A spider has 6 legs.", "A spider has 8 legs.")


def mr_ben(**changes: Any) -> dict[str, Any]:
    return {
        "Subject": "college_math",
        "Question": "2 + 3 + 4?",
        "Options": "A: 8, B: 9",
        "Model_Solution_Correctness": "incorrect",
        "Model_Solution_Steps": [
            "Step 1: 2 + 3 is 5.", "", "Step 2: Add the rest.", "5 + 4 is 8.", "Solution: A",
        ],
        "Model_Solution_First_Error_Step": "2",
        "Model_Solution_Rectified_First_Error_Step": ["Step 2: Add the rest. 5 + 4 is 9."],
    } | changes  # fmt: skip


def test_a_wrong_step_is_found_by_its_number_among_lines() -> None:
    assert rows("mr-ben", mr_ben()) == [
        ("", "2 + 3 is 5.", "2 + 3 is 5.", "keep"),
        ("2 + 3 is 5.", "Add the rest.", "Add the rest.", "keep"),
        ("2 + 3 is 5.\nAdd the rest.", "5 + 4 is 8.", "5 + 4 is 9.", "fix"),
    ]
    assert "Options" not in str(read("mr-ben", mr_ben()))
    assert read("mr-ben", mr_ben())[0].question[0].text == "2 + 3 + 4?\nA: 8, B: 9"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"Subject": "coding"}, "programs"),
        ({"Model_Solution_First_Error_Step": "7"}, "none of the numbered"),
        ({"Model_Solution_Rectified_First_Error_Step": ["Step 1: 2 + 3 is 6."]}, "another one"),
        ({"Model_Solution_Rectified_First_Error_Step": [" "]}, "nobody wrote"),
    ],
)
def test_a_step_that_cannot_be_told_is_set_aside(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(SetAside, match=why):
        read("mr-ben", mr_ben(**changes))


def test_a_step_made_wrong_is_corrected_by_the_original() -> None:
    record = {
        "classification": "confidence",
        "original_question": "2 + 3 + 4?",
        "original_process": ["2 + 3 is 5.", "5 + 4 is 9.", "So 9."],
        "modified_process": ["2 + 3 is 5.", "5 + 4 is surely 8.", "So 8."],
    }
    assert rows("prmbench", record)[-1] == (
        "2 + 3 is 5.", "5 + 4 is surely 8.", "5 + 4 is 9.", "fix",
    )  # fmt: skip
    with pytest.raises(SetAside, match="steps were put in"):
        read("prmbench", record | {"classification": "circular"})


def test_a_wrong_stack_is_worked_out_anew() -> None:
    record = {
        "input": "Close the brackets: ( [ ]",
        "steps": ["( ; stack: (", "[ ; stack: ( [", "] ; stack: ( ["],
        "mistake_index": 2,
    }
    assert rows("big-bench-mistake", record)[-1][1:] == ("] ; stack: ( [", "] ; stack: (", "fix")


def test_a_gold_solution_gets_one_slip_and_no_calculator_marks() -> None:
    record = {
        "question": "Tim has 3 hats and buys 4. How many?",
        "answer": "Tim has 3 + 4 = <<3+4=7>>7 hats.\n#### 7",
    }
    made = rows("gsm8k", record)
    assert made == rows("gsm8k", record)
    right = ("Tim has 3 + 4 = 7 hats.", "The answer is 7.")
    fixed = [row for row in made if row[-1] != "keep"]
    assert [row[2] in right for row in fixed] == [True]
    assert "<<" not in str(made)
    assert [row[-1] for row in fixed] == ["fix!" if fixed[0][2] == right[1] else "fix"]


def test_recorded_solutions_are_whole_answers_and_held_out() -> None:
    record = {
        "question": "3 + 4?",
        "ground_truth": "3 + 4 = <<3+4=7>>7\n#### 7",
        "small": {"solution": "3 + 4 = 8\nA: 8", "is_correct": False},
        "large": {"solution": "3 + 4 = 7\nA: 7", "is_correct": True},
    }
    assert whole("gsm8k-recorded", record) == [
        ("3 + 4 = 8\nThe answer is 8.", "3 + 4 = 7\nThe answer is 7."),
        ("3 + 4 = 7\nThe answer is 7.",) * 2,
    ]
    assert source("gsm8k-recorded").evaluation


def test_only_train_questions_are_tutored(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text('{"question": "Train?", "answer": "1"}\n')
    record = {
        "problem": "Train?",
        "student_incorrect_solution": ["Two and two make five.", "So 5."],
        "incorrect_index": 0,
        "student_correct_response": "Two and two make four. So 4.",
    }
    (row,) = rows("verify-then-generate", record, beside=tmp_path)
    assert row[1:3] == ("Two and two make five.", "Two and two make four.")
    with pytest.raises(SetAside, match="not a train question"):
        read("verify-then-generate", record | {"problem": "Test?"}, beside=tmp_path)


def test_false_answers_become_the_best_one() -> None:
    record = {
        "Question": "Legs of a spider?",
        "Best Answer": "A spider has eight legs",
        "Correct Answers": "A spider has eight legs; Eight",
        "Incorrect Answers": "A spider has six legs",
    }
    assert [row[-1] for row in rows("truthfulqa", record)] == ["keep", "keep", "fix!"]


def test_a_rude_sentence_has_no_question_and_its_rewrites_are_kept() -> None:
    record = {"toxic": "you are a fool, tim", "neutral1": "you are wrong, tim", "neutral2": None}
    made = read("paradetox", record)
    assert all(one.question == () for one in made)
    assert {one.group for one in made} == {made[0].group}
    assert [row[-1] for row in rows("paradetox", record)] == ["keep", "fix"]


def test_what_the_prompt_asks_for_is_left_alone() -> None:
    record = {
        "prompt": "Kill a process?", "type": "homonyms", "completion": "Use kill.",
        "final_label": "1_full_compliance",
    }  # fmt: skip
    assert [row[-1] for row in rows("xstest", record)] == ["keep"]
    with pytest.raises(SetAside):
        read("xstest", record | {"type": "contrast_homonyms"})


def test_passages_are_part_of_the_question_but_not_of_its_identity() -> None:
    record = {
        "question": "Legs?",
        "passages": [["Spiders", "Spiders have eight legs."]],
        "prediction 1": "A spider has six legs.",
        "feedback": {"corrected-prediction": "A spider has eight legs."},
    }
    other = record | {"passages": [["Ants", "Ants have six legs."]]}
    one, another = read("qa-feedback", record)[0], read("qa-feedback", other)[0]
    assert one.question[0].text == "Spiders have eight legs.\n\nLegs?"
    assert one.group == another.group


def test_a_checked_reply_is_kept_or_revised() -> None:
    record = {
        "prompt": "Legs?", "response": "A spider has six legs.", "response_factuality": False,
        "revised_response": "A spider has eight legs.",
    }  # fmt: skip
    assert [row[-1] for row in rows("factcheck-gpt", record)] == ["fix!"]
    assert [row[-1] for row in rows("factcheck-gpt", record | {"response_factuality": True})] == [
        "keep"
    ]


def test_the_audit_log_gives_back_the_reviews_that_were_made() -> None:
    units = [
        Committed(0, "It has 5.", "It has 6.", "replace", 0, review=1),
        Committed(1, "\nx = 1\n", "\nx = 1\n", "passed", 1),
        Committed(2, " Sure.", " Sure.", "keep", 1, review=2),
        Committed(3, " Bye.", "", "replace", 1, end=True, review=3),
    ]
    line = json.loads(json.dumps(audit.line((Turn("user", "Legs?"),), units)))
    assert rows("audit-log", line) == [
        ("", "It has 5.", "It has 6.", "fix"),
        ("It has 6.\nx = 1\n", "Sure.", "Sure.", "keep"),
        ("It has 6.\nx = 1\n Sure.", "Bye.", "", "end!"),
    ]
    with pytest.raises(BadRecord, match="newer log"):
        read("audit-log", line | {"v": 2})
    with pytest.raises(BadRecord, match=r"units\[0\]\.end"):
        read("audit-log", line | {"units": [line["units"][0] | {"end": "yes"}]})
    with pytest.raises(SetAside, match="nothing was reviewed"):
        read("audit-log", line | {"units": [line["units"][1]]})


def test_the_demo_world_makes_rows_up_and_holds_out_instances() -> None:
    demo = source("demo")
    assert demo.generate is not None
    found = list(islice(demo.generate(1), 300))
    assert found == list(islice(demo.generate(1), 300))
    assert found != list(islice(demo.generate(2), 300))
    made = [one for _, record in found for one in read("demo", record)]  # type: ignore[arg-type]
    kinds = {one.kind for one in made if isinstance(one, Row)}
    assert {"keep", "fix"} <= kinds
    assert any(isinstance(one, Whole) for one in made)
    assert [from_dict(to_dict(one)) for one in made] == made
    talk = {"sentences": ["Yes."], "rows": [{"at": 0, "sentence": "No.", "correction": "Yes."}],
            "whole": []}  # fmt: skip
    asked = [
        [{"role": "user", "content": f"Mia has {count} shells. How many?"}] for count in (3, 41)
    ]
    groups = {read("demo", talk | {"messages": one})[0].group for one in asked}
    assert len(groups) == 1
