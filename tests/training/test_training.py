"""Tokenizer, packing, configs and a short training run."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from stream_aligner_proxy.core.prompts import COMPACT_TOKENS
from stream_aligner_proxy.core.records import Review, Turn
from training.config import ConfigError, load_config
from training.corrections import Mix, Reviewed, Row, encode, examples, foreseen, synthetic
from training.engine import (
    Deep,
    Optim,
    Shape,
    TrainingDiverged,
    build_model,
    grow,
    learning_rate,
    save,
    train,
)
from training.generate import Writer
from training.loops import Episode, ModelReviewer, encode_review, run_stream, run_whole
from training.mistakes import oracle, reviewed
from training.packing import IGNORE, Example, collate, pack
from training.pretrain import PretrainConfig
from training.pretrain import examples as pretrain_examples
from training.tokenizer import SPECIAL, Coder, train_tokenizer
from training.world.chat import sample_conversation
from training.world.judge import grade
from training.world.problems import problems
from training.world.slips import Carelessness

ROOT = Path(__file__).resolve().parents[2]
TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=2, ff=48)


@pytest.fixture(scope="module")
def coder() -> Coder:
    torch.set_num_threads(1)
    return Coder(train_tokenizer(1, vocab_size=512, count=200))


@pytest.fixture(scope="module")
def model(coder: Coder) -> Any:
    return build_model(TINY, coder.tokenizer, 0).eval()


# Decoding drops lone surrogates and nothing else; they are not text.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
HOSTILE = st.lists(st.sampled_from([*SPECIAL, " ", "\n", "a", "7"]), max_size=8).map("".join)


@given(text=ANY_TEXT | HOSTILE)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_and_never_becomes_a_special_token(coder: Coder, text: str) -> None:
    ids = coder.data(text)
    assert coder.text(ids) == text
    assert not set(ids) & set(coder.ids.values())


def test_digits_are_single_tokens_and_the_compact_profile_has_its_tokens(coder: Coder) -> None:
    assert coder.tokenizer.convert_ids_to_tokens(coder.data("1407")) == list("1407")
    assert set(COMPACT_TOKENS) <= set(SPECIAL)
    for token in SPECIAL:
        assert coder.tokenizer.encode(token) == [coder.ids[token]]


def test_the_chat_template_neither_trims_nor_closes_what_is_to_be_continued(coder: Coder) -> None:
    talk = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": " Oh. "}]
    template = coder.tokenizer.apply_chat_template
    assert template(talk, tokenize=False, continue_final_message=True) == (
        "<|user|> Hi <|assistant|> Oh. "
    )
    assert template([*talk, talk[0]], tokenize=False, add_generation_prompt=True) == (
        "<|user|> Hi <|assistant|> Oh. <|eos|><|user|> Hi <|assistant|>"
    )
    ids = template([*talk, talk[0]], add_generation_prompt=True, return_dict=False)
    assert ids == coder.turns((*talk, talk[0]))


def test_a_review_in_a_packed_row_computes_what_it_would_alone(coder: Coder, model: Any) -> None:
    rng = random.Random(4)
    trees = [encode(synthetic(rng, Mix(whole=share)), coder, Mix()) for share in (0, 1, 0)]
    length = sum(map(len, trees)) + 5
    batch = collate([trees], length, coder.tokenizer.pad_token_id)
    with torch.inference_mode():
        packed = model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask
        ).logits[0]
    checked = start = 0
    for tree in trees:
        for branch in range(1, max(tree.branch) + 1):
            mine = [i for i, b in enumerate(tree.branch) if b == branch]
            alone = tree.ids[: tree.sees[mine[0]]] + [tree.ids[i] for i in mine]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([alone])).logits[0]
            torch.testing.assert_close(
                packed[start + mine[0] : start + mine[-1] + 1],
                logits[-len(mine) :],
                atol=1e-4,
                rtol=1e-3,
            )
            checked += 1
        start += len(tree)
    assert checked > 6


def test_training_rows_are_the_prompts_that_the_proxy_renders(coder: Coder, model: Any) -> None:
    writer = Writer(model, coder.tokenizer)
    rng = random.Random(7)
    for _ in range(20):
        drawn = synthetic(rng, Mix())
        tree = encode(drawn, coder, Mix())
        talk = tuple(Turn(m["role"], m["content"]) for m in drawn.messages)
        for branch, row in enumerate(drawn.rows, 1):
            mine = [i for i, b in enumerate(tree.branch) if b == branch]
            committed = " ".join(drawn.sentences[: row.at])
            prompt = encode_review(writer, Review(talk, committed, row.sentence))
            assert (tree.ids[: tree.sees[mine[0]]] + [tree.ids[i] for i in mine])[
                : len(prompt)
            ] == prompt
        for branch, (reply, _) in enumerate(drawn.whole, 1 + len(drawn.rows)):
            mine = [i for i, b in enumerate(tree.branch) if b == branch]
            prompt = encode_review(writer, Review(talk, "", reply, "whole"))
            assert (tree.ids[: tree.sees[mine[0]]] + [tree.ids[i] for i in mine])[
                : len(prompt)
            ] == prompt


def test_an_example_that_is_too_long_is_left_out_of_packing() -> None:
    short, long = Example(), Example()
    short.add([5] * 6, 1)
    long.add([6] * 50, 1)
    batch = next(pack(itertools.cycle([short, long]), rows=2, length=20, pad=0))
    assert 6 not in batch.ids
    assert (batch.ids == 5).sum() == 36


def test_a_short_training_run_lowers_the_loss_and_its_checkpoint_loads(
    coder: Coder, tmp_path: Path
) -> None:
    config = PretrainConfig("test", 1, Optim(20, lr=5e-3, warmup=2, rows=4, length=256), TINY)
    model = build_model(TINY, coder.tokenizer, config.seed)
    batches = pack(pretrain_examples(config, coder), 4, 256, coder.tokenizer.pad_token_id)
    losses = train(model, batches, config.optim, name="test", compiled=False)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    out = tmp_path / "model"
    save(model, coder.tokenizer, out, {"config": config})
    save(model, coder.tokenizer, out, {"config": config})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((out / "training_config.json").read_text())["config"]["seed"] == 1
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype is torch.bfloat16
    assert loaded.generation_config.eos_token_id == coder.tokenizer.eos_token_id
    again = Coder(AutoTokenizer.from_pretrained(out))
    assert again.data("<|eos|> Mia has 34.") == coder.data("<|eos|> Mia has 34.")
    assert again.ids == coder.ids
    assert again.tokenizer.chat_template == coder.tokenizer.chat_template


def test_correction_training_lowers_the_loss_too(coder: Coder) -> None:
    optim = Optim(12, lr=5e-3, warmup=2, rows=3, length=512)
    rows = pack(examples(random.Random(0), coder, Mix(), ()), 3, 512, coder.tokenizer.pad_token_id)
    losses = train(build_model(TINY, coder.tokenizer, 0), rows, optim, name="t", compiled=False)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_what_should_stand_is_told_up_to_the_first_fault_and_no_further() -> None:
    assert foreseen([4, 5, 6], [4, 5, 6]) == ([4, 5, 6], [0, 0, 0])
    assert foreseen([4, 9, 6, 7], [4, 5, 6]) == ([4, 5, IGNORE, IGNORE], [0, 1, IGNORE, IGNORE])
    assert foreseen([4, 5, 6], [8]) == ([8, IGNORE, IGNORE], [1, IGNORE, IGNORE])
    # Too short is no fault of any token that stands there.
    assert foreseen([4, 5], [4, 5, 6]) == ([4, 5], [0, 0])
    assert foreseen([], [4]) == ([], [])


def test_a_packed_batch_says_where_each_wrong_sentence_goes_wrong(coder: Coder) -> None:
    talk = ({"role": "user", "content": "Ben has 79 shells."},)
    rows = (Row(0, "Ben has 79.", None), Row(0, "Ben has 78.", "Ben has 79."))
    tree = encode(Reviewed(talk, ("Ben has 79.",), rows), coder, Mix())
    batch = collate([[tree]], len(tree) + 3, coder.tokenizer.pad_token_id)
    wrong = (batch.faults == 1).nonzero().tolist()
    assert [int(batch.ids[0, at]) for _, at in wrong] == coder.data("8")
    before = wrong[0][1] - 1
    assert [int(batch.known[0, before])] == coder.data("9")
    assert (batch.known[0, wrong[0][1] :] == IGNORE).all()
    # Nothing is learnt early about text that nobody could foresee.
    babble = encode(Reviewed(talk, ("Xyz.",), (Row(0, "Xyz.", None),), known=False), coder, Mix())
    assert set(babble.known) == {IGNORE}


def test_a_grown_model_says_at_first_what_it_said_before(coder: Coder, model: Any) -> None:
    ids = torch.tensor([coder.data("Ben has 79 shells.")])
    taller = grow(model, 4).eval()
    assert taller.config.num_hidden_layers == 4
    with torch.inference_mode():
        torch.testing.assert_close(taller(ids).logits, model(ids).logits)


def test_deep_supervision_teaches_the_lower_layers_and_leaves_nothing_else_behind(
    coder: Coder,
) -> None:
    optim = Optim(45, lr=5e-3, warmup=2, rows=3, length=512)
    model = grow(build_model(TINY, coder.tokenizer, 0), 4)
    names = set(model.state_dict())

    def known_loss() -> float:
        rows = pack(examples(random.Random(9), coder, Mix(), ()), 3, 512, 0)
        batch = next(rows)
        with torch.inference_mode():
            states = model(
                input_ids=batch.ids,
                position_ids=batch.positions,
                attention_mask=batch.mask,
                output_hidden_states=True,
            ).hidden_states
            due = batch.known != IGNORE
            early = model.lm_head(model.model.norm(states[2][due]))
        return float(torch.nn.functional.cross_entropy(early, batch.known[due]))

    before = known_loss()
    rows = pack(examples(random.Random(0), coder, Mix(), ()), 3, 512, coder.tokenizer.pad_token_id)
    train(model, rows, optim, name="t", compiled=False, deep=Deep(exit=2, exit_weight=4.0))
    assert known_loss() < 0.85 * before
    assert set(model.state_dict()) == names


def test_a_loss_that_is_not_a_number_stops_the_training(coder: Coder) -> None:
    model = build_model(TINY, coder.tokenizer, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    config = PretrainConfig("test", 1, Optim(2, rows=2, length=256), TINY)
    batches = pack(pretrain_examples(config, coder), 2, 256, coder.tokenizer.pad_token_id)
    with pytest.raises(TrainingDiverged, match="nan at step 0"):
        train(model, batches, config.optim, name="test", compiled=False)


def test_the_learning_rate_warms_up_and_decays_to_its_floor() -> None:
    optim = Optim(100, lr=1.0, floor=0.1, warmup=10)
    rates = [learning_rate(step, optim) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nseed: 1\noptim: {steps: 1, speed: 3}", "unknown key 'optim.speed'"),
        ("name: x\nseed: 1\nnaem: y\noptim: {steps: 1}", "unknown key 'naem'"),
        ("name: x\nseed: one\noptim: {steps: 1}", "seed must be int"),
        ("name: x\nseed: 1\noptim: {steps: 1, lr: big}", "optim.lr must be a number"),
        ("name: x\nseed: 1", "optim"),
    ],
)
def test_a_config_that_cannot_be_used_names_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, file)


def test_the_simulated_loop_with_the_worlds_own_judge_ends_every_reply_right(
    coder: Coder, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that copies a careless reply, so that every mistake has to be caught."""
    rng = random.Random(0)
    drawn = problems(0, 40, "train")
    writer = Writer(model, coder.tokenizer)
    how = Carelessness(10, 0.7, 0.7, 0.1, 0.1, 0.3)

    def write(prompts: list[list[int]], **_: Any) -> list[tuple[list[int], bool]]:
        replies = []
        for prompt in prompts:
            said = coder.tokenizer.decode(prompt)
            question, committed = said.removeprefix("<|user|>").split("<|assistant|>")
            problem = next(p for p in drawn if p.question == question)
            rest = careless_rest(problem, committed, rng, how)
            replies.append((coder.data(rest), True))
        return replies

    monkeypatch.setattr(writer, "write", write)
    episodes = [Episode(({"role": "user", "content": p.question},), p) for p in drawn]
    run_stream(writer, oracle, episodes, temperature=0)
    assert all(grade(p.answer, e.committed) for p, e in zip(drawn, episodes, strict=True))
    assert all(e.committed == p.reply for p, e in zip(drawn, episodes, strict=True))
    assert sum(e.corrections for e in episodes) > 20
    assert all(e.branches <= e.corrections + 1 for e in episodes)
    rows = [row for e in episodes if (one := reviewed(e)) for row in one.rows]
    assert sum(row.correction is not None for row in rows) == sum(e.corrections for e in episodes)


def careless_rest(problem: Any, committed: str, rng: random.Random, how: Carelessness) -> str:
    from training.world.judge import sentences_of
    from training.world.slips import careless_sentence

    values = problem.values[: len(sentences_of(committed))]
    said = []
    for step in problem.steps[len(values) :]:
        sentence, value = careless_sentence(step, values, rng, how)
        said.append(sentence)
        values.append(value)
    return (" " if committed else "") + " ".join(said)


def test_an_untrained_aligner_neither_crashes_the_loop_nor_hangs_it(
    coder: Coder, model: Any
) -> None:
    writer = Writer(model, coder.tokenizer)
    talks = [sample_conversation(random.Random(i), "train") for i in range(3)]
    episodes = [Episode(t.messages, t.task) for t in talks if t.task]
    run_whole(writer, ModelReviewer(writer), episodes, temperature=0.7)
    assert all(e.finished for e in episodes)
