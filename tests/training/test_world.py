"""The demo world: the same seed gives the same data, splits share nothing, the judge is right."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_aligner_proxy.core.sentences import split
from training.world.chat import sample_conversation
from training.world.judge import final_answer, grade, judge_reply, judge_step, sentences_of
from training.world.problems import MAX_VALUE, problems, sample_problem
from training.world.slips import Carelessness, careless_reply, corrupt
from training.world.split import split_of, stream
from training.world.tone import (
    SLOTS,
    TOPICS,
    is_rude,
    judge_tone,
    polite_counterpart,
    requests,
    sample_request,
    write_note,
)

ROOT = Path(__file__).resolve().parents[2]
SEEDS = st.integers(0, 10_000)


def world(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.world", *args],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_same_seed_draws_the_same_problems_and_another_seed_others() -> None:
    assert problems(5, 30, "test") == problems(5, 30, "test")
    assert problems(5, 30, "test") != problems(6, 30, "test")
    assert requests(5, 30, "train") == requests(5, 30, "train")


def test_no_instance_and_no_question_is_in_both_splits() -> None:
    for draw in (problems, requests):
        train = [one for seed in range(8) for one in draw(seed, 250, "train")]
        test = [one for seed in range(8) for one in draw(seed, 250, "test")]
        assert {split_of(one.key) for one in train} == {"train"}
        assert {split_of(one.key) for one in test} == {"test"}
        assert not {one.key for one in train} & {one.key for one in test}
        assert not {one.question for one in train} & {one.question for one in test}


def test_an_instance_keeps_its_split_whatever_its_numbers() -> None:
    problem = problems(1, 1, "test")[0]
    assert not any(number in problem.key for number in map(str, problem.values))


def test_every_earlier_turn_of_a_training_conversation_is_from_the_train_split() -> None:
    held_out = {p.question for s in range(4) for p in problems(s, 250, "test")}
    rng = stream("train", "leak", 0)
    asked = {
        message["content"]
        for _ in range(1500)
        for message in sample_conversation(rng, "train").messages
    }
    assert not asked & held_out


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_gold_reply_is_right_at_every_step(seed: int) -> None:
    problem = sample_problem(random.Random(seed), "train")
    assert grade(problem.answer, problem.reply)
    assert all(one.right for one in judge_reply(problem, problem.reply))
    assert sentences_of(problem.reply) == problem.sentences
    assert all(2 <= value <= MAX_VALUE for value in problem.values)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_corrupted_step_is_wrong_and_the_correction_mends_it(seed: int) -> None:
    rng = random.Random(seed)
    problem = sample_problem(rng, "train")
    for at, step in enumerate(problem.steps):
        committed = " ".join(problem.sentences[:at])
        verdict = judge_step(problem, committed, corrupt(step, problem.values[:at], rng))
        assert not verdict.right
        assert verdict.correction == problem.sentences[at]
        assert verdict.end == (at + 1 == len(problem.steps))


def test_a_wrong_step_spoils_the_answer_and_what_follows_it_is_judged_by_it() -> None:
    problem = next(p for p in problems(3, 50, "train") if len(p.steps) == 4 and p.steps[-2].op)
    rng = random.Random(1)
    wrong = corrupt(problem.steps[1], problem.values[:1], rng)
    values = [problem.values[0], judged_value(wrong)]
    rest = []
    for step in problem.steps[2:]:
        rest.append(step.sentence(values))
        values.append(step.value(values))
    reply = " ".join([problem.sentences[0], wrong, *rest])
    assert [one.right for one in judge_reply(problem, reply)] == [True, False, True, True]
    assert not grade(problem.answer, reply)


def judged_value(sentence: str) -> int:
    return int("".join(c for c in sentence.split("=")[1] if c.isdigit()))


def test_careless_replies_are_often_wrong_and_never_all() -> None:
    rng = random.Random(0)
    drawn = problems(0, 400, "train")
    right = sum(grade(p.answer, careless_reply(p, rng, Carelessness())) for p in drawn)
    assert 120 < right < 280


def test_a_sentence_after_the_answer_should_not_be_there() -> None:
    problem = problems(0, 1, "train")[0]
    verdict = judge_step(problem, problem.reply, "The answer is 5.")
    assert (verdict.right, verdict.correction, verdict.end) == (False, "", True)


@pytest.mark.parametrize(
    ("reply", "final"),
    [
        ("So 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 8. Wait, the answer is 007.", "7"),
        ("It leaves 12 shells", "12"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_one_stated(reply: str, final: str | None) -> None:
    assert final_answer(reply) == final


def test_every_rude_template_is_rude_and_its_counterpart_is_not() -> None:
    assert not any(is_rude(f"{topic} {fix}") for topic, fix in TOPICS)
    for slot in SLOTS:
        for polite, rude in slot:
            assert is_rude(rude)
            assert not is_rude(polite)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_every_rude_sentence_has_a_polite_counterpart(seed: int) -> None:
    rng = random.Random(seed)
    request = sample_request(rng, "train")
    parts = sentences_of(write_note(request, rng, 1))
    assert 4 <= len(parts) <= 6
    for part in parts:
        verdict = judge_tone(part)
        assert verdict is not None
        assert not verdict.right
        assert verdict.correction == polite_counterpart(part)
        assert not is_rude(verdict.correction)


def test_a_polite_opening_is_followed_by_polite_sentences() -> None:
    rng = random.Random(0)
    for request in requests(0, 50, "train"):
        assert not any(map(is_rude, sentences_of(write_note(request, rng, 0))))


def test_problems_and_requests_have_no_rude_sentence() -> None:
    assert not any(is_rude(p.question + p.reply) for p in problems(0, 300, "test"))
    assert not any(is_rude(r.question) for r in requests(0, 300, "test"))


def test_the_command_prints_problems_that_its_own_grader_accepts() -> None:
    printed = world("problems", "--seed", "9", "--count", "5")
    rows = [json.loads(line) for line in printed.stdout.splitlines()]
    assert len(rows) == 5
    assert [row["answer"] for row in rows] == [p.answer for p in problems(9, 5, "test")]
    assert rows[0]["messages"][0]["role"] == "user"
    asked = [
        json.dumps({"answer": r["answer"], "reply": f"The answer is {r['answer']}."}) for r in rows
    ]
    asked.append(json.dumps({"answer": "5", "reply": None}))
    graded = world("grade", stdin="\n".join(asked))
    assert [json.loads(line)["correct"] for line in graded.stdout.splitlines()] == [True] * 5 + [
        False
    ]
    assert "5 of 6 right" in graded.stderr


def test_the_command_prints_requests_and_says_what_is_wrong_with_bad_input() -> None:
    assert len(world("requests", "--seed", "9", "--count", "3").stdout.splitlines()) == 3
    bad = world("grade", stdin="nonsense")
    assert bad.returncode != 0
    assert "line 1 is not JSON" in bad.stderr
    assert "examples:" in world("--help").stdout


def test_the_proxys_splitter_cuts_exactly_one_step_per_sentence() -> None:
    rng = random.Random(5)
    replies = [p.reply for p in problems(2, 300, "train")]
    replies += [write_note(r, rng) for r in requests(2, 300, "train")]
    for reply in replies:
        assert [one.text.strip() for one in split(reply)] == sentences_of(reply)
