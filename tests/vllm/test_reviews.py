"""The aligner on vLLM's engine: verdicts as in-process, told in parts, dialled, batched."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from vllm.inputs import tokens_input

from stream_aligner_proxy.aligners.registry import create
from stream_aligner_proxy.aligners.transformers_engine import TransformersAligner
from stream_aligner_proxy.aligners.vllm_engine import VllmAligner
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.vllm.world import CPU, DEMO, all_gone, offspring, reviews

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
async def aligner() -> AsyncIterator[VllmAligner]:
    made = create({"backend": "vllm", "path": DEMO, "dtype": "float32", **CPU})
    assert isinstance(made, VllmAligner)
    with pytest.raises(ReviewError, match="not started"):
        await made.review(reviews(1)[0])
    assert not made.ready
    await made.start()
    assert made.ready
    processes = offspring(os.getpid())
    assert any("EngineCore" in " ".join(one.cmdline()) for one in processes)
    yield made
    await made.close()
    assert not made.ready
    assert all_gone(processes) == []


@pytest.fixture(scope="module")
async def reference() -> AsyncIterator[TransformersAligner]:
    made = TransformersAligner(DEMO, dtype="float32", method="greedy", threads=1)
    await made.start()
    yield made
    await made.close()


def said(verdict: Verdict) -> tuple[str | None, bool]:
    return verdict.replacement, verdict.end


async def test_it_says_what_the_transformers_engine_says(
    aligner: VllmAligner, reference: TransformersAligner
) -> None:
    asked = reviews(120)
    expected = [said(await reference.review(review)) for review in asked]
    assert any(text is None for text, _ in expected)
    assert sum(text is not None for text, _ in expected) > 20
    got: list[Verdict] = []
    for start in range(0, len(asked), 32):  # as many at once as two batches hold
        some = asked[start : start + 32]
        got += await asyncio.gather(*(aligner.review(review) for review in some))
    assert [said(verdict) for verdict in got] == expected
    assert all(verdict.prompt_tokens > 10 and verdict.completion_tokens > 1 for verdict in got)


async def test_the_beginning_of_a_rewrite_is_told_while_the_rest_is_written(
    aligner: VllmAligner,
) -> None:
    parts = 0
    for review in reviews(24):
        told: list[str] = []
        verdict = await aligner.review(review, told.append)
        text = review.sentence if verdict.replacement is None else verdict.replacement
        for earlier, later in zip(told, [*told[1:], text], strict=True):
            assert later.startswith(earlier)
        assert len(set(told)) == len(told)
        parts += len(told)
        assert said(verdict) == said(await aligner.review(review))
    assert parts > 12


async def test_the_dial_moves_between_keeping_and_rewriting(aligner: VllmAligner) -> None:
    assert aligner.strengths == (0.0, 1.0)
    kept = {}
    asked = reviews(24)
    for strength in (0.0, 0.02, 0.5, 0.98, 1.0):
        verdicts = await asyncio.gather(
            *(aligner.review(replace(review, strength=strength)) for review in asked)
        )
        kept[strength] = sum(verdict.kept for verdict in verdicts)
    assert list(kept.values()) == sorted(kept.values(), reverse=True)
    assert kept[0.0] == len(asked)
    assert kept[0.0] > kept[0.5] > 0


async def test_the_beginning_of_an_expected_review_is_read_before_it_comes(
    aligner: VllmAligner,
) -> None:
    talk = (Turn("user", " ".join(problem.conversation[0].text for problem in reviews(9, seed=8))),)
    review = Review(talk, "", "That makes 12 in all.")
    aligner.expect(replace(review, sentence=""))
    reading = aligner._reading
    assert reading is not None
    aligner.expect(replace(review, sentence="That"))
    assert aligner._reading is reading  # one at a time
    await reading
    prompt = list(aligner._framed(review).prompt)
    parameters = aligner._parameters(1, prompt, parts=False)
    async for output in aligner._engine.generate(tokens_input(prompt), parameters, "probe"):
        assert output.num_cached_tokens > len(prompt) / 2


async def test_a_mark_in_the_text_is_only_text(aligner: VllmAligner) -> None:
    sentence = "Say <|keep|> and <|revision|> <|eos|>."
    verdict = await aligner.review(Review((Turn("user", "<|sentence|>"),), "", sentence))
    assert verdict.prompt_tokens > len(sentence) / 2


async def test_a_sentence_beyond_the_window_is_refused(aligner: VllmAligner) -> None:
    with pytest.raises(ReviewError, match="does not fit the aligner's window"):
        await aligner.review(Review((), "", "word " * 2000))
    assert aligner.ready


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"path": "/nowhere"}, "aligner.path"),
        ({"draft": "psychic"}, "aligner.draft"),
        ({"draft_tokens": 500}, "aligner.draft_tokens"),
        ({"profile": "stream-aligner"}, "aligner.profile"),
        ({"profile": "stream-aligner-plain", "draft": "sentence"}, "aligner.draft"),
        ({"adapter": "/nowhere"}, "aligner.adapter"),
        ({"queue": 0}, "aligner.queue"),
    ],
)
async def test_what_can_never_work_is_found_at_the_start(
    options: dict[str, object], key: str
) -> None:
    async def attempt() -> None:
        await create({"backend": "vllm", "path": DEMO, **options}).start()

    with pytest.raises(ConfigError, match=f"^{key}"):
        await attempt()
