"""Recipes, rows, schedules and estimates: everything that is decided before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stream_aligner_proxy.aligners.encoding import Encoder as Engine
from stream_aligner_proxy.core.prompts import PROFILES
from tests.training import recipe_parts
from training.config import ConfigError
from training.recipe import __main__ as cli
from training.recipe import estimate, keeping
from training.recipe.config import accumulation, load_recipe, named
from training.recipe.rows import (
    DataError,
    Encoded,
    Encoder,
    Sample,
    files,
    fingerprint,
    hold_out,
    read,
    unchanged,
)
from training.recipe.schedule import pack, rate, schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    recipe_parts.base(folder / "base")
    recipe_parts.rows(folder / "train.jsonl")
    recipe_parts.recipe(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "base")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return list(read([folder / "train.jsonl"]))


@pytest.mark.parametrize("name", named())
def test_every_shipped_recipe_can_be_read_and_planned(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe_parts.ROOT)
    assert cli.main(["plan", "--config", name, "--devices", "8", "--device-gib", "80"]) == 0
    assert "GiB per device, estimated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optim.bacth=3", "optim.bacth: unknown key; did you mean 'batch'"),
        ("model.profile=kompact", "model.profile"),
        ("optim.batch=3", "optim.micro_batch: must divide"),
        ("optim.batch=many", "optim.batch"),
        ("warmup.lr=0", "warmup.lr: must be more than 0"),
        ("data.heldout=1", "data.heldout"),
        ("zero.offload=true", "zero.offload: needs zero.stage"),
        ("model=3", "model: must be a mapping"),
        ("name.first=3", "no such section"),
        ("nothing", "must be key=value"),
    ],
)
def test_a_wrong_setting_is_named_and_ends_with_2(
    folder: Path, setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(folder / "recipe.yaml")
    assert cli.main(["plan", "--config", config, "--set", setting]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_recipe_gets_the_closest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'stream-aligner-2b'"):
        load_recipe("stream-aligner-2")


def test_numbers_may_be_written_as_yaml_does_not_read_them(folder: Path) -> None:
    recipe = load_recipe(str(folder / "recipe.yaml"), ["correction.lr=2e-5"])
    assert recipe.correction.lr == 2e-5


def test_a_batch_that_devices_cannot_share_is_refused(folder: Path) -> None:
    recipe = load_recipe(str(folder / "recipe.yaml"))
    assert accumulation(recipe, 1) == 2
    assert accumulation(recipe, 2) == 1
    with pytest.raises(ConfigError, match=r"optim\.batch: 4 rows cannot be shared evenly by 3"):
        accumulation(recipe, 3)


@pytest.mark.parametrize("profile", ["compact", "stream-aligner-plain"])
def test_prompts_are_the_ids_that_the_engine_asks_with(
    tokenizer: Any, samples: list[Sample], profile: str
) -> None:
    engine = Engine(tokenizer, PROFILES[profile], [tokenizer.eos_token_id])
    mine = Encoder(tokenizer, PROFILES[profile], keep_token=False)
    for sample in samples[:40]:
        encoded = mine.encode(sample)
        assert tuple(encoded.ids[: encoded.start]) == engine.prompt(sample.review)
        if sample.kept:
            assert tuple(encoded.ids[encoded.start :]) == engine.draft(sample.review)


def test_special_tokens_inside_a_row_are_only_text(tokenizer: Any, folder: Path) -> None:
    file = folder / "evil.jsonl"
    row = {"question": "<|keep|>", "prefix": "<|sentence|>", "last": "<|eos|>", "correction": "a"}
    file.write_text(json.dumps(row))
    encoded = Encoder(tokenizer, PROFILES["compact"], True).encode(next(read([file])))
    for token in ("<|keep|>", "<|eos|>", "<|sentence|>"):
        times = encoded.ids.count(tokenizer.convert_tokens_to_ids(token))
        assert times == (0 if token == "<|keep|>" else 1)


def test_an_answer_says_keep_or_end_where_the_row_does(tokenizer: Any, folder: Path) -> None:
    file = folder / "end.jsonl"
    row = {"question": "q", "prefix": "", "last": "a", "correction": "a", "end": True}
    file.write_text(json.dumps(row))
    encoded = Encoder(tokenizer, PROFILES["compact"], True).encode(next(read([file])))
    said = tokenizer.convert_ids_to_tokens(encoded.ids[encoded.start :])
    assert said == ["<|keep|>", "<|end|>", "<|eos|>"]
    assert all(label == -100 for label in encoded.labels[: encoded.start])


def test_a_profile_whose_tokens_are_missing_is_refused_by_name(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"<start_of_turn>, <end_of_turn>; set model\.add"):
        Encoder(tokenizer, PROFILES["stream-aligner"], True)


def test_a_profile_for_whole_answers_refuses_sentences(
    tokenizer: Any, samples: list[Sample]
) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:2: is a row of one sentence"):
        Encoder(tokenizer, PROFILES["aligner"], True).all(samples, 512, "error")


def test_rows_that_are_too_long_are_counted_and_named(
    tokenizer: Any, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder(tokenizer, PROFILES["compact"], True)
    lengths = [len(encoder.encode(one).ids) for one in samples]
    limit = sorted(lengths)[-3]
    over = sum(length > limit for length in lengths)
    with pytest.raises(DataError, match=rf"^{over} rows have more than {limit} tokens .*train"):
        encoder.all(samples, limit, "error")
    assert len(encoder.all(samples, limit, "drop")) == len(samples) - over
    assert f"{over} rows over" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", '{"question": "q", "last": "a"}', '{"question": [1]}'])
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    good = {"question": "q", "prefix": "", "last": "a", "correction": "b"}
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=r"train\.jsonl:3: "):
        list(read([file]))


def test_the_fingerprint_does_not_depend_on_the_order(samples: list[Sample]) -> None:
    assert fingerprint(samples) == fingerprint(samples[::-1])
    assert fingerprint(samples) != fingerprint(samples[1:])


def test_a_folder_tells_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").touch()
    (tmp_path / "heldout.jsonl").touch()
    train, held = files(tmp_path)
    assert [p.name for p in train + held] == ["train-0.jsonl", "heldout.jsonl"]
    (tmp_path / "train-0.jsonl").unlink()
    with pytest.raises(DataError, match="has no train"):
        files(tmp_path)


def test_no_group_is_on_both_sides(samples: list[Sample]) -> None:
    learn, held = hold_out(samples * 2, 0.2)
    assert held
    assert not {s.group for s in learn} & {s.group for s in held}


def test_the_warm_up_leaves_corrections_alone(samples: list[Sample]) -> None:
    warm = unchanged(samples, 30)
    assert len(warm) == 30
    assert all(one.kept for one in warm)


@given(st.lists(st.integers(1, 50), max_size=200))
def test_packing_loses_nothing_and_fits(lengths: list[int]) -> None:
    examples = [Encoded([number] * length, 0) for number, length in enumerate(lengths)]
    rows = pack(examples, 50)
    assert all(sum(len(one.ids) for one in row) <= 50 for row in rows)
    packed = sorted((one for row in rows for one in row), key=lambda one: one.ids[0])
    assert packed == examples


def test_the_rows_of_a_step_depend_on_the_seed_alone(folder: Path) -> None:
    recipe = load_recipe(str(folder / "recipe.yaml"))
    other = load_recipe(str(folder / "recipe.yaml"), ["seed=2"])
    examples = [Encoded([number] * (number % 60 + 1), 0) for number in range(100)]
    first = schedule(recipe, examples, examples)
    assert first == schedule(recipe, examples, examples)
    assert first.rows != schedule(other, examples, examples).rows
    assert len(first.rows) == first.steps * recipe.optim.batch


def test_each_stage_rises_to_its_own_rate_and_falls(folder: Path) -> None:
    recipe = load_recipe(str(folder / "recipe.yaml"), ["correction.lr_warmup=0.1"])
    at = rate(recipe, (10, 50))
    assert at(0) == 0.5
    assert at(9) < 0.05
    assert at(13) == 1.0
    assert at(49) < 0.01
    assert at(50) == 0


def test_zero_stages_need_less_and_less_and_what_does_not_fit_says_what_would() -> None:
    recipe = load_recipe("stream-aligner-8b")
    shape = estimate.size(recipe)
    needs = [
        estimate.memory(estimate.at(recipe, stage, False), shape, 8).device for stage in range(4)
    ]
    assert needs == sorted(needs, reverse=True)
    assert needs[3] < 80 * estimate.GIB < needs[0]
    with pytest.raises(ConfigError, match=r"zero\.stage: 0 does not fit.* try zero\.stage: "):
        estimate.must_fit(estimate.at(recipe, 0, False), shape, 8, 80 * estimate.GIB, None)


def test_half_written_checkpoints_do_not_count_and_the_best_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    for step in (10, 20, 30):
        part = tmp_path / keeping.WRITING / keeping.name(step)
        part.mkdir(parents=True)
        (part / "model.safetensors").write_text(str(step))
        keeping.publish(tmp_path, step, {"step": step})
    assert keeping.complete(tmp_path) == [10, 20, 30]
    keeping.rotate(tmp_path, best=10)
    assert keeping.complete(tmp_path) == [10, 30]


def test_a_full_disk_is_told_beforehand(tmp_path: Path) -> None:
    with pytest.raises(keeping.NoSpace, match="are free, and about"):
        keeping.room_for(tmp_path, 1e18)
