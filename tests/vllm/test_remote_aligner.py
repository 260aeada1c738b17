"""The remote aligner at a real vLLM server: the verdicts of the in-process engine, told as they are
written, dialled by what the server says of the first token."""

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

if find_spec("vllm") is None:
    pytest.skip("vLLM is not in this environment", allow_module_level=True)

import torch

from stream_aligner_proxy.aligners.dial import decide
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.framing import frame
from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.aligners.remote_server import Server
from stream_aligner_proxy.aligners.transformers_engine import TransformersAligner
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.prompts import PROFILES
from stream_aligner_proxy.core.records import NEUTRAL, Review, Turn, Verdict
from training.world.problems import problems
from training.world.slips import corrupt

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ALIGNER = ROOT / "stream_aligner_proxy" / "demo" / "models" / "aligner"
SECONDS_TO_START = 400.0
# Two cores are shared with the test: no thread is bound to one.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A vLLM server with the demo aligner in full precision; its address without `/v1`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # fmt: off
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(ALIGNER), "--served-model-name", "aligner",
        "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "1000", "--enforce-eager",
    ]
    # fmt: on
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
        try:
            until = time.monotonic() + SECONDS_TO_START
            while not healthy(address):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise AssertionError(f"vLLM did not start:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()
                process.wait()


def healthy(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/health", timeout=2, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture
async def aligner(server: str) -> AsyncIterator[RemoteAligner]:
    made = RemoteAligner(ALIGNER, urls=[f"{server}/v1"])
    await made.start()
    yield made
    await made.close()


def sentences(count: int, seed: int = 11) -> list[Review]:
    """Steps of held-out problems, each as it should be and as a careless writer has it."""
    rng = random.Random(seed)
    found: list[Review] = []
    for problem in problems(seed, count, "test"):
        talk = (Turn("user", problem.question),)
        values = problem.values
        for at, step in enumerate(problem.steps):
            before = " ".join(problem.sentences[:at])
            for text in (step.sentence(values[:at]), corrupt(step, values[:at], rng)):
                found.append(Review(talk, before, text))
    return found[:count]


def dialled(review: Review, strength: float) -> Review:
    return Review(review.conversation, review.committed, review.sentence, review.scope, strength)


async def all_of(aligner: Any, reviews: list[Review]) -> list[tuple[str | None, bool]]:
    places = asyncio.Semaphore(8)

    async def one(review: Review) -> Verdict:
        async with places:
            verdict: Verdict = await aligner.review(review)
            return verdict

    verdicts = await asyncio.gather(*map(one, reviews))
    return [(verdict.replacement, verdict.end) for verdict in verdicts]


async def test_what_the_server_can_do_is_found_out(aligner: RemoteAligner) -> None:
    [server] = aligner._pool.servers
    assert (server.model, server.window) == ("aligner", 1000)
    assert server.abilities is not None
    assert server.abilities.ids
    assert aligner.strengths == (0.0, 1.0)


async def test_its_verdicts_are_those_of_the_in_process_engine(aligner: RemoteAligner) -> None:
    reviews = sentences(160)
    local = TransformersAligner(ALIGNER, dtype="float32", device="cpu")
    await local.start()
    try:
        expected = await all_of(local, reviews)
    finally:
        await local.close()
    assert await all_of(aligner, reviews) == expected
    changed = sum(replacement is not None for replacement, _end in expected)
    assert 40 < changed < 120


async def test_revisions_are_told_as_they_are_written(aligner: RemoteAligner) -> None:
    told_of_changed = 0
    for review in sentences(30):
        told: list[str] = []
        verdict = await aligner.review(review, told.append)
        whole = review.sentence if verdict.replacement is None else verdict.replacement
        assert all(whole.startswith(text) for text in told)
        assert all(longer.startswith(text) for text, longer in pairwise(told))
        told_of_changed += verdict.replacement is not None and len(told) > 2
    assert told_of_changed > 5


@pytest.mark.parametrize("strength", [0.0, 0.02, 0.2, 0.98])
async def test_the_dial_decides_as_it_does_on_the_models_own_logits(
    aligner: RemoteAligner, strength: float
) -> None:
    local = TransformersAligner(ALIGNER, dtype="float32", device="cpu")
    await local.start()
    model = local._engine._decoder._network.model
    encoder = Encoder(aligner._vocabulary.tokenizer, PROFILES["compact"], aligner._encoder.ends)
    assert encoder.keep is not None
    kept = []
    for review in sentences(60):
        prompt = frame(encoder, review, 1000, lambda draft: 2 * draft + 64).prompt
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        chances = {
            token: float(chance)
            for token, chance in enumerate(logits)
            if token not in encoder.meaningless
        }
        begins = decide(chances, encoder.keep, strength)
        told: list[str] = []
        with suppress(ReviewError):  # far up the dial the model may not find an end
            verdict = await aligner.review(dialled(review, strength), told.append)
            # A revision may come out as the sentence itself: that is keeping it, too.
            kept.append(verdict.replacement is None and not told)
            assert kept[-1] == (begins == encoder.keep)
    await local.close()
    assert len(kept) > 20
    assert strength > 0 or all(kept)


async def test_leaving_stops_the_server(aligner: RemoteAligner, server: str) -> None:
    # A long answer at strength 1: it has to write the sentence anew.
    review = Review((), "", "So they count all buttons. " * 12, "whole", 1.0)
    seen = 0
    async with httpx2.AsyncClient(trust_env=False) as client:
        for _ in range(5):
            asked = asyncio.ensure_future(aligner.review(review))
            while not asked.done() and not await running(client, server):
                pass
            seen += not asked.done()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            async with asyncio.timeout(5):
                while await running(client, server):
                    pass
    assert seen


async def running(client: httpx2.AsyncClient, server: str) -> float:
    """Requests that vLLM works on."""
    text = (await client.get(f"{server}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_a_text_only_reader_gets_the_same_verdicts(aligner: RemoteAligner) -> None:
    """As at a server that gives no ids: control tokens are read from the text."""
    reviews = sentences(40)
    expected = await all_of(aligner, reviews)
    [server] = aligner._pool.servers
    without_ids(server)
    assert await all_of(aligner, reviews) == expected
    low = [dialled(review, 0.0) for review in reviews[:10]]
    assert await all_of(aligner, low) == [(None, False)] * 10
    assert aligner.strengths != (NEUTRAL, NEUTRAL)


def without_ids(server: Server) -> None:
    assert server.abilities is not None
    server.abilities = replace(server.abilities, ids=False)
