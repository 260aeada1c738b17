"""The in-process aligner: told as it writes, dialled, reading ahead, drawing, LoRA, every dtype."""

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from stream_aligner_proxy.aligners import checkpoint as checkpoints
from stream_aligner_proxy.aligners.transformers_engine import TransformersAligner
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.aligners.models import (
    ARCHITECTURES,
    GEMMA_TOKENS,
    QUESTION,
    checkpoint,
    model,
    tokenizer,
)
from tests.aligners.test_transformers_engine import (
    CHANGED,
    KEPT,
    VERDICTS,
    Gate,
    ask,
    running,
    same,
    saved,
)

pytestmark = [
    pytest.mark.anyio,
    # PEFT asks transformers in words that are going out of use.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
BOUND = 20


# --- told while it writes -----------------------------------------------------------------------


async def test_a_revision_is_told_word_by_word_and_the_verdict_goes_on_from_it() -> None:
    async with running(method="greedy") as aligner:
        told: list[str] = []
        verdict = await aligner.review(Review(QUESTION, "", CHANGED), told.append)
        assert verdict.replacement == "The dog sat on it."
        assert told == ["The", "The dog", "The dog sat", "The dog sat on"]


async def test_a_verified_draft_is_told_in_one_piece() -> None:
    async with running() as aligner:
        told: list[str] = []
        await aligner.review(Review(QUESTION, "", CHANGED), told.append)
        assert told[0] == "The"
        assert len(told) <= 3
        assert all(b.startswith(a) for a, b in pairwise(told))


async def test_keeping_deleting_and_errors_tell_nothing_that_is_not_so() -> None:
    async with running() as aligner:
        for sentence in (KEPT, "Goodbye.", "An oath!"):
            told: list[str] = []
            await aligner.review(Review(QUESTION, "", sentence), told.append)
            assert told == []


async def test_nothing_is_told_after_a_review_was_cancelled() -> None:
    async with running(method="greedy") as aligner:
        gate = Gate(aligner)
        told: list[str] = []
        task = asyncio.ensure_future(aligner.review(Review(QUESTION, "", CHANGED), told.append))
        for _ in range(6):
            await gate.entered()
            gate.let_through()
        await gate.entered()
        await asyncio.sleep(0)
        task.cancel()
        count = len(told)
        gate.stay_open()
        await ask(aligner)
        assert len(told) == count


# --- cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", range(15))
async def test_a_review_can_be_cancelled_at_every_pass(passes: int) -> None:
    async with running(method="greedy") as aligner:
        gate = Gate(aligner)
        leaves, stays = ask(aligner), ask(aligner)
        for _ in range(passes):
            await gate.entered()
            gate.let_through()
        await gate.entered()
        leaves.cancel()
        gate.stay_open()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert same(await stays, VERDICTS[CHANGED])
        assert same(await ask(aligner, KEPT), VERDICTS[KEPT])
        assert not aligner._worker._running
        assert not aligner._worker._batch.lanes
        assert aligner.queue.free == 64


# --- the dial -----------------------------------------------------------------------------------


async def test_the_dial_goes_from_leaving_all_alone_to_never_saying_keep() -> None:
    async with running() as aligner:
        assert aligner.strengths == (0.0, 1.0)
        alone = await aligner.review(Review(QUESTION, "", CHANGED, strength=0.0))
        assert alone.kept
        neutral = await aligner.review(Review(QUESTION, "", CHANGED, strength=0.5))
        assert same(neutral, VERDICTS[CHANGED])
        gate = Gate(aligner)
        gate.stay_open()
        bold = await asyncio.gather(
            aligner.review(Review(QUESTION, "", KEPT, strength=1.0)), return_exceptions=True
        )
        # Whatever the model makes of it, it has not said keep: that takes one pass.
        assert len(gate.rows) > 1 or isinstance(bold[0], ReviewError)


async def test_rows_of_one_batch_have_their_own_dials() -> None:
    async with running() as aligner:
        verdicts = await asyncio.gather(
            *(
                aligner.review(Review(QUESTION, "", CHANGED, strength=strength))
                for strength in (0.0, 0.5, 0.0, 0.5)
            )
        )
        assert [verdict.kept for verdict in verdicts] == [True, False, True, False]


async def test_a_profile_without_a_keep_token_can_be_dialled_down_only() -> None:
    def load() -> Any:
        return checkpoint(profile="stream-aligner")

    async with running(load=load) as aligner:
        assert aligner.strengths == (0.0, 0.5)
        verdict = await aligner.review(Review(QUESTION, "", "The hen sat.", strength=0.0))
        assert verdict.kept


# --- reading ahead ------------------------------------------------------------------------------


async def until_idle(aligner: TransformersAligner) -> None:
    """Until nothing that was expected is left to read."""
    async with asyncio.timeout(BOUND):
        while not aligner._worker._changed._waiters or aligner._worker._expected:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def tokens_run(aligner: TransformersAligner, review: Review) -> int:
    """How many tokens the passes of a review read."""
    network = aligner._engine._decoder._network
    run, seen = network.forward, []

    def counted(kv: Any, pending: Any, proposals: Any) -> Any:
        seen.append(sum(map(len, pending)) + sum(map(len, proposals)))
        return run(kv, pending, proposals)

    network.forward = counted  # type: ignore[method-assign]
    await asyncio.gather(aligner.review(review), return_exceptions=True)
    network.forward = run  # type: ignore[method-assign]
    return sum(seen)


async def test_what_is_expected_is_read_before_it_is_asked() -> None:
    talk = (Turn("user", "Go on and tell it all again, from the beginning to the end."),)
    async with running() as aligner:
        # Over what the overfitted model knows; the tokens are what counts.
        cold = await tokens_run(aligner, Review(talk, "", KEPT))
        other = (Turn("user", talk[0].text + " Now."),)
        aligner.expect(Review(other, "", ""))
        await until_idle(aligner)
        begun = await tokens_run(aligner, Review(other, "", KEPT))
        assert begun < cold / 2


async def test_a_growing_sentence_is_read_as_it_grows() -> None:
    sentence = "the hen on the inn in the end " * 8 + "sat."
    async with running() as aligner:
        aligner._engine._reading = aligner._engine._reading._replace(least=8)
        draft = len(aligner._engine._encoder.draft(Review(QUESTION, "", sentence)))
        for end in range(0, len(sentence), 48):
            aligner.expect(Review(QUESTION, "", sentence[:end].strip()))
            await until_idle(aligner)
        network = aligner._engine._decoder._network
        run, first = network.forward, []

        def counted(kv: Any, pending: Any, proposals: Any) -> Any:
            first.append(len(pending[0]))
            return run(kv, pending, proposals)

        network.forward = counted  # type: ignore[method-assign]
        await asyncio.gather(ask(aligner, sentence), return_exceptions=True)
        assert first[0] < draft / 2


async def test_a_review_that_is_here_goes_before_what_may_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as aligner:
        engine, order = aligner._engine, []

        def noted(name: str, call: Any) -> Any:
            def watched(*args: Any) -> Any:
                order.append(name)
                return call(*args)

            return watched

        for name in ("read", "foresee"):
            monkeypatch.setattr(engine, name, noted(name, getattr(engine, name)))
        gate = Gate(aligner)
        first = ask(aligner)
        await gate.entered()
        aligner.expect(Review((Turn("user", "More. " * 40),), "", ""))
        second = ask(aligner, KEPT)
        await asyncio.sleep(0)
        gate.stay_open()
        await first
        await second
        await until_idle(aligner)
        assert order[:2] == ["read", "read"]
        assert "foresee" in order[2:]


async def test_hints_for_one_reply_replace_each_other_and_are_bounded() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        running_ = ask(aligner)
        await gate.entered()
        for number in range(5):
            aligner.expect(Review(QUESTION, "", "The hen" + " sat" * number))
        assert len(aligner._worker._expected) == 1
        talks = [(Turn("user", f"{number}"),) for number in range(100)]
        for talk in talks:
            aligner.expect(Review(talk, "", ""))
        assert len(aligner._worker._expected) == 64
        gate.stay_open()
        await running_


async def test_a_hint_that_cannot_be_read_harms_nobody() -> None:
    async with running() as aligner:
        aligner.expect(Review(QUESTION, "", "no " * 5000))
        aligner._engine.foresee = None  # type: ignore[assignment,method-assign]
        aligner.expect(Review(QUESTION, "", "The hen"))
        assert same(await ask(aligner), VERDICTS[CHANGED])
        assert aligner.ready


async def test_reading_ahead_can_be_switched_off() -> None:
    async with running(prefill=False) as aligner:
        aligner.expect(Review(QUESTION, "", "The hen"))
        assert not aligner._worker._expected


# --- drawing ------------------------------------------------------------------------------------


async def test_a_seed_makes_drawn_revisions_the_same_each_time_and_without_one_they_differ() -> (
    None
):
    def load() -> Any:
        return checkpoint()

    async def outputs(seed: int | None) -> list[Any]:
        async with running(load=load, temperature=1.0, seed=seed, max_new_extra=8) as aligner:
            rows = []
            begin = aligner._engine._decoder.begin_apart

            def noted(batch: Any) -> Any:
                rows.extend(batch)
                return begin(batch)

            aligner._engine._decoder.begin_apart = noted  # type: ignore[method-assign]
            for sentence in (KEPT, CHANGED):
                await asyncio.gather(ask(aligner, sentence), return_exceptions=True)
            return [row.output for row in rows]

    first, second = await outputs(7), await outputs(7)
    assert first == second
    assert first[0] != first[1]
    assert await outputs(8) != first
    assert await outputs(None) != await outputs(None)


# --- shapes, formats, precision -----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
async def test_every_shape_runs_in_every_precision(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    words = tokenizer()
    # Some kinds of tokenizer add a token of their own when they are loaded.
    model(architecture, len(words) + 8).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    aligner = TransformersAligner(tmp_path, profile="compact", dtype=dtype, max_new_extra=4)
    await aligner.start()
    try:
        network = aligner._engine._decoder._network
        assert network.model.dtype == getattr(torch, dtype)
        answers = await asyncio.gather(
            *(ask(aligner, sentence) for sentence in (KEPT, CHANGED, "Goodbye.")),
            return_exceptions=True,
        )
        # Random weights say anything; what matters is that it is an answer.
        for answer in answers:
            assert isinstance(answer, Verdict | ReviewError)
            assert "failed" not in str(answer)
            assert "no numbers" not in str(answer)
    finally:
        await aligner.close()


@pytest.mark.parametrize("profile", ["compact", "stream-aligner", "stream-aligner-plain"])
async def test_every_profile_reads_what_its_model_repeats(profile: str) -> None:
    """A model that would repeat any sentence: the dial at 0 makes any model one."""

    def load() -> Any:
        return checkpoint(profile=profile)

    rng = random.Random(5)
    async with running(load=load) as aligner:
        for _ in range(5):
            text = "".join(rng.choices("The hen##Question: <|keep|> ", k=30)).strip() or "x"
            review = Review(QUESTION, "", text, strength=0.0)
            told: list[str] = []
            assert (await aligner.review(review, told.append)).kept
            assert all(text.startswith(part) for part in told)


# --- LoRA ---------------------------------------------------------------------------------------


def adapter(base: Path, folder: Path, *, kind: Any = None) -> Path:
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    config = kind or LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM
    )
    adapted: Any = get_peft_model(network, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(folder)
    return folder


async def test_a_lora_adapter_is_merged_into_the_weights(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", training_config={"prompt_profile": "aligner"})
    folder = adapter(base, tmp_path / "adapter")
    (folder / "training_config.json").write_text(json.dumps({"prompt_profile": "compact"}))
    loaded = checkpoints.load(base, adapter=folder, device="cpu")
    assert loaded.profile == "compact"
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[1, 2, 3]])
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    from peft import PeftModel

    expected: Any = PeftModel.from_pretrained(plain, folder)
    with torch.inference_mode():
        ours = loaded.model(ids).logits
        assert torch.allclose(ours, expected(ids).logits, atol=1e-4)
        with expected.disable_adapter():
            assert not torch.allclose(ours, expected(ids).logits, atol=1e-2)
    aligner = TransformersAligner(base, adapter=folder)
    await aligner.start()
    assert aligner.scopes == {"sentence", "whole"}
    await aligner.close()


async def test_an_adapter_brings_the_tokens_it_was_trained_with(tmp_path: Path) -> None:
    words = tokenizer(leave_out=GEMMA_TOKENS)
    base = tmp_path / "base"
    model("llama", len(words)).save_pretrained(base)
    words.save_pretrained(base)
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    full = tokenizer()
    network.resize_token_embeddings(len(full))
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        task_type=TaskType.CAUSAL_LM,
    )
    adapted: Any = get_peft_model(network, config)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder, save_embedding_layers=False)
    full.save_pretrained(folder)
    aligner = TransformersAligner(base, adapter=folder, profile="stream-aligner")
    await aligner.start()
    assert aligner._engine._decoder._network.model.get_input_embeddings().num_embeddings == len(
        full
    )
    await aligner.close()


async def test_an_adapter_that_cannot_work_is_refused_with_the_key(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    other = tmp_path / "other"
    model("gpt2", len(tokenizer())).save_pretrained(other)
    tuned = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("[]")
    gpt = LoraConfig(
        r=2, target_modules=["c_attn"], task_type=TaskType.CAUSAL_LM, fan_in_fan_out=True
    )
    for folder, message in (
        (tmp_path / "nowhere", "is not a directory"),
        (tmp_path / "empty", "has no adapter_config.json"),
        (tmp_path / "bad", "cannot be read"),
        (adapter(base, tmp_path / "tuned", kind=tuned), "only LORA"),
        (adapter(other, tmp_path / "gpt", kind=gpt), "does not fit"),
    ):
        with pytest.raises(ConfigError, match=rf"aligner\.adapter: .*{message}"):
            await TransformersAligner(base, adapter=folder, profile="compact").start()
