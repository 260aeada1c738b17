"""Two versions of a text, sentence by sentence."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_aligner_proxy.core.sentences import split
from training.data import align as module
from training.data.align import Step, align, align_best, first_difference, likeness

WORDS = ("rain", "tea", "five", "Oslo", "green", "was", "is", "not")
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(
    lambda words: " ".join(words).capitalize() + "."
)
PROSE = st.lists(SENTENCES, min_size=1, max_size=8)
SPACE = st.sampled_from((" ", "\n", "\n\n", "  "))
# Anything at all, and text that is built of what the splitter looks for.
WILD = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(
            ("A b. ", "C? ", "\n", "```\n", "x = 1\n", "- d ", "1. ", " ", "Eé ", "。")
        ),
        max_size=14,
    ).map("".join),
)


@st.composite
def versions(draw: st.DrawFn) -> tuple[str, str]:
    """A text, and the same with some of its sentences changed, left out, added or joined."""
    parts = draw(PROSE)
    better: list[str] = []
    for part in parts:
        match draw(st.sampled_from(("keep", "keep", "fix", "drop", "add", "join"))):
            case "keep":
                better.append(part)
            case "fix":
                better.append(part.replace(".", " indeed."))
            case "add":
                better += [draw(SENTENCES), part]
            case "join" if better:
                better[-1] = f"{better[-1][:-1]}, {part}"
            case _:
                pass
    space = draw(SPACE)
    return space.join(parts), space.join(better)


def kinds(steps: list[Step]) -> list[str]:
    return [f"{step.kind}{'!' if step.end and step.kind != 'end' else ''}" for step in steps]


@given(st.one_of(versions(), st.tuples(WILD, WILD)), st.booleans())
@example(("A. B.", " \n"), True)
@example(("A. B.", ""), True)
@example(("0\x850", "\r"), True)
def test_the_steps_joined_are_the_corrected_text(texts: tuple[str, str], ends: bool) -> None:
    original, corrected = texts
    if not original.strip():
        with pytest.raises(ValueError, match="empty"):
            align(original, corrected)
        return
    steps = align(original, corrected, ends=ends)
    assert "".join(step.text for step in steps) == corrected


@given(st.one_of(versions(), st.tuples(WILD, WILD)))
def test_the_originals_joined_are_the_text_that_was_reviewed(texts: tuple[str, str]) -> None:
    original, corrected = texts
    if not original.strip():
        return
    assert "".join(step.original for step in align(original, corrected, ends=False)) == original
    # Where the reply is over, the rest of the original is never seen.
    assert original.startswith("".join(step.original for step in align(original, corrected)))


@given(st.one_of(PROSE.map(" ".join), WILD))
def test_a_text_and_itself_give_keeps_only(text: str) -> None:
    if text.strip():
        steps = align(text, text)
        assert {step.kind for step in steps} == {"keep"}
        assert not any(step.end for step in steps)
        assert likeness(steps) == 1


@given(st.one_of(versions(), st.tuples(WILD, WILD)))
def test_only_the_last_step_ends_a_reply_and_keeps_never_do(texts: tuple[str, str]) -> None:
    if texts[0].strip():
        steps = align(*texts)
        assert not any(step.end for step in steps[:-1])
        assert all(not step.end for step in steps if step.kind == "keep")
        assert all((step.last == step.correction) == (step.kind == "keep") for step in steps)


@given(WILD, WILD, WILD)
def test_what_stands_before_changes_nothing_about_joining(after: str, a: str, b: str) -> None:
    if a.strip():
        assert "".join(step.text for step in align(a, b, after=after, ends=False)) == b


@pytest.mark.parametrize(
    ("original", "corrected", "expected"),
    [
        ("It rains. I go.", "It rains. I stay.", ["keep", "fix!"]),
        ("It rains. I go home now.", "It snows. I go home now.", ["fix", "keep"]),
        ("It rains. Oh well! I go.", "It rains. I go.", ["keep", "delete", "keep"]),
        ("It rains. I go.", "It rains. It is late. I go.", ["keep", "insert!"]),
        ("It rains. I go. Bye.", "It rains. It is late. I go. Bye.", ["keep", "insert", "keep"]),
        ("It rains.", "It rains. I go.", ["insert!"]),
        ("It rains. I go. Bye.", "It rains.", ["keep", "end"]),
        ("It rains. I go. Bye.", "It snows.", ["fix!"]),
        (
            "It rains in Oslo today. I go home. The tea is hot.",
            "It snows in Oslo today. The tea is hot.",
            ["fix", "delete", "keep"],
        ),
        (
            "The sum of both is seven. It is odd too.",
            "The sum of both is seven, and it is odd too.",
            ["merge!"],
        ),
        (
            "The sum of both is seven, and it is odd too. Bye.",
            "The sum of both is seven. It is odd too. Bye.",
            ["fix", "keep"],
        ),
        ("It rains.  I go.", "It rains.\n\nI go.", ["keep", "keep"]),
        ("It rains.", "", ["end"]),
    ],
)
def test_what_a_reviewer_would_have_said(
    original: str, corrected: str, expected: list[str]
) -> None:
    assert kinds(align(original, corrected)) == expected


def test_a_sentence_that_is_cut_in_two_is_one_review() -> None:
    (step, last) = align("The sum is 7, and it is odd too. Bye.", "The sum is 7. It is odd. Bye.")
    assert step.correction == "The sum is 7. It is odd."
    assert last.kind == "keep"


def test_more_is_to_come_where_the_correction_does_not_end_the_reply() -> None:
    steps = align("It rains. I go.", "It rains. I stay.", ends=False)
    assert kinds(steps) == ["keep", "fix"]


def test_code_is_marked_and_never_joined_to_prose() -> None:
    text = "Look.\n```\nx = 1\ny = 2\n```\nDone here."
    steps = align(text, text.replace("Done here", "All done here"))
    assert [step.code for step in steps] == [False, True, True, True, True, False]
    assert steps[-1].kind == "fix"


def test_a_text_that_continues_a_code_block_is_code() -> None:
    assert all(step.code for step in align("x = 1\n", "x = 2\n", after="Look.\n```\n"))


def test_the_work_grows_with_the_text_and_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = 0
    plain = module.unlikeness

    def counting(*args: object) -> float:
        nonlocal counted
        counted += 1
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "unlikeness", counting)

    def work(count: int) -> int:
        nonlocal counted
        counted = 0
        one = " ".join(f"Line {i} says {i * 7} of {i % 13} things in all." for i in range(count))
        other = one.replace("says 7", "told us 7").replace("of 5", "about 5")
        assert len(split(one)) == count
        align(one, other)
        return counted

    few, many = work(300), work(1200)  # 10,000 and 40,000 characters
    assert few > 0
    assert many < 5 * few


@given(st.tuples(PROSE, PROSE).map(lambda two: (" ".join(two[0]), " ".join(two[1]))))
def test_answers_that_part_give_their_first_difference_and_no_more(texts: tuple[str, str]) -> None:
    rejected, chosen = texts
    steps = first_difference(rejected, chosen)
    assert {step.kind for step in steps[:-1]} <= {"keep"}
    said = "".join(step.text for step in steps)
    assert chosen.startswith(said)
    if steps and steps[-1].end:
        assert said == chosen


def test_nothing_is_learnt_where_the_rejected_answer_is_over_first() -> None:
    assert kinds(first_difference("It rains.", "It rains. Take a coat.")) == ["keep"]
    assert kinds(first_difference("It rains. Ha!", "It rains.")) == ["keep", "end"]


def test_the_sentence_most_alike_is_found() -> None:
    text = "First some words. The sum of 3 and 4 is 7. Then more."
    assert align_best("The sum of 3 and 4 is 8.", text) == "The sum of 3 and 4 is 7."
    assert align_best("0?", text) is None
    assert align_best("Anything.", "") is None
