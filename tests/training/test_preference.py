"""Pairs from an aligner's own mistakes, and what preferring the right answers does."""

import json
from pathlib import Path

import pytest

from stream_aligner_proxy.core.records import Review, Turn
from training.heldout.answers import Judge
from training.preference.__main__ import main
from training.preference.pairs import Pair, different, mistakes, read, write
from training.recipe.rows import DataError, Sample

ALIGNER = Path(__file__).parents[2] / "stream_aligner_proxy" / "demo" / "models" / "aligner"
needs_model = pytest.mark.skipif(not ALIGNER.is_dir(), reason="the demo models are not there")
QUESTION = (
    Turn("user", "Ana bakes 87 cakes. Later she sells 56 in the morning. How many cakes are left?"),
)
FIRST = "Ana bakes 87 cakes."


def said(number: int) -> str:
    return f"She sells 56 in the morning, so 87 - 56 = {number} cakes."


def sample(last: int, correction: int) -> Sample:
    return Sample(
        Review(QUESTION, FIRST, said(last), "sentence"), said(correction), False, "g", "w"
    )


PAIR = Pair(Review(QUESTION, FIRST, said(41), "sentence"), (said(31), False), (said(41), True), "g")


def test_pairs_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "pairs.jsonl"
    write([PAIR], file)
    (found,) = read(file)
    assert found.where == "pairs.jsonl:1"
    assert (found.review, found.chosen, found.rejected) == (
        PAIR.review,
        PAIR.chosen,
        PAIR.rejected,
    )
    chosen, rejected = found.samples()
    assert (chosen.correction, chosen.end) == (said(31), False)
    assert (rejected.correction, rejected.end) == (said(41), True)


@pytest.mark.parametrize(
    "line", ["{", "{}", json.dumps({"question": [], "prefix": "", "sentence": "a", "scope": "x"})]
)
def test_a_bad_pair_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1"):
        list(read(file))


def test_the_same_mistake_twice_is_one_pair() -> None:
    assert different([PAIR, PAIR]) == [PAIR]


@needs_model
def test_a_pair_is_what_the_aligner_says_wrongly_and_nothing_else() -> None:
    judge = Judge(ALIGNER)
    right = [sample(31, 31), sample(41, 31)]
    assert mistakes(judge, right) == []
    (pair,) = mistakes(judge, [*right, sample(41, 30)])  # as if 30 were right
    assert (pair.chosen, pair.rejected) == ((said(30), False), (said(31), False))


@needs_model
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # of TRL
@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_what_is_preferred_becomes_likelier_and_the_checkpoint_is_one(
    method: str, tmp_path: Path
) -> None:
    """Taught that 30 is right, the aligner comes to say 30."""
    pytest.importorskip("trl", reason="TRL is in .venv-train only (`make training-tests`)")
    wrong = [
        Pair(
            Review(QUESTION, FIRST, said(n), "sentence"), (said(30), False), (said(31), False), "g"
        )
        for n in (31, 41, 21, 51)
    ]
    file, out = tmp_path / "pairs.jsonl", tmp_path / "tuned"
    write(wrong * 2, file)
    arguments = ["train", "--method", method, "--aligner", str(ALIGNER), "--pairs", str(file)]
    arguments += ["--out", str(out), "--batch", "4", "--epochs", "8", "--lr", "3e-4"]
    assert main(arguments) == 0
    said_now = Judge(out).answer([sample(41, 30)])[0].verdict
    assert said_now is not None
    assert said_now.replacement == said(30)
    record = json.loads((out / "training_config.json").read_text())
    assert record["prompt_profile"] == "compact"
    assert record["preference"]["method"] == method
    assert main(arguments) == 2  # it is there already


def test_what_is_wrong_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q"}\n')
    arguments = ["pairs", "--aligner", str(tmp_path), "--rows", str(rows)]
    assert main([*arguments, "--out", str(tmp_path / "p.jsonl")]) == 2
    assert "rows.jsonl:1: KeyError" in capsys.readouterr().err
