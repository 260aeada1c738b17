"""vLLM as the upstream: what dialect `vllm` relies on, against its real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.core.sentences import split
from stream_aligner_proxy.demo.launch import EXAMPLES
from stream_aligner_proxy.settings import Settings, build
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from tests.servers import serve
from tests.vllm.processes import command, free_port
from tests.vllm.world import BOUND, MODELS

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

MODEL = "writer"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A vLLM server with the demo upstream; its address without `/v1`."""
    port = free_port()
    # fmt: off
    arguments = (
        "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
        "--model", str(MODELS / "upstream"), "--served-model-name", MODEL,
        "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager",
    )
    # fmt: on
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }
    with command(*arguments, **environment) as running:
        running.answers(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(params=["prefill", "ids"])
async def upstream(server: str, request: pytest.FixtureRequest) -> AsyncIterator[HttpUpstream]:
    """The server, continued in one way or the other."""
    made = HttpUpstream(
        "vllm", f"{server}/v1", "vllm", continuation=request.param, timeouts=Timeouts()
    )
    yield made
    await made.aclose()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as made:
        yield made


def settings(server: str, folder: Path, rules: str) -> Settings:
    file = folder / "rules.yaml"
    file.write_text(rules)
    return build(
        {
            "upstreams": [{"name": "vllm", "base_url": f"{server}/v1", "dialect": "vllm"}],
            "aligner": {"backend": "rules", "path": str(file)},
            "alignment": {"mode": "stream"},
        },
        environ={},
    )


async def written(upstream: HttpUpstream, question: str, prefix: str = "") -> str:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 200,
    }
    async with upstream.open(ChatRequest(MODEL, body, ()), prefix=prefix) as chunks:
        return "".join([chunk.text async for chunk in chunks])


@pytest.mark.parametrize("question", EXAMPLES)
async def test_a_reply_continued_after_any_sentence_is_the_reply_in_one_go(
    upstream: HttpUpstream, question: str
) -> None:
    whole = await written(upstream, question)
    sentences = [sentence.text for sentence in split(whole)]
    assert len(sentences) > 1
    for number in range(1, len(sentences)):
        prefix = "".join(sentences[:number])
        assert prefix + await written(upstream, question, prefix) == whole


async def test_a_probe_finds_that_it_continues_or_what_it_takes_the_dialect_for(
    server: str,
) -> None:
    for dialect, found in (("vllm", "continues"), ("ollama", "restarts")):
        upstream = HttpUpstream("vllm", f"{server}/v1", dialect)
        # Without its flags a partial message is closed, and a new turn begins in silence.
        assert await upstream.probe(MODEL) == found
        assert upstream.continuation(
            ChatRequest(MODEL, {"model": MODEL, "messages": [{"role": "user", "content": "?"}]}, ())
        ).way == ("prefill" if found == "continues" else "instruct")
        await upstream.aclose()


async def test_tokens_are_counted_as_a_reply_reads_them(
    server: str, client: httpx.AsyncClient
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    body = {"model": MODEL, "messages": messages}
    upstream = HttpUpstream("vllm", f"{server}/v1", "vllm")
    counted = await upstream.count_tokens(ChatRequest(MODEL, body, ()))
    await upstream.aclose()
    reply = await client.post(f"{server}/v1/chat/completions", json={**body, "max_tokens": 1})
    assert counted == reply.json()["usage"]["prompt_tokens"]


async def test_after_a_rewrite_the_server_continues_from_the_corrected_text(
    server: str, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    rules = "- {find: 'shells', replace: 'pebbles'}\n"
    question = EXAMPLES[0]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 200,
    }
    async with serve(create_app(settings(server, tmp_path, rules))) as proxy:
        answer = await client.post(f"{proxy}/v1/chat/completions", json=body)
    reply = answer.json()
    assert answer.status_code == 200, reply
    text = reply["choices"][0]["message"]["content"]
    assert "pebbles" in text
    assert "shells" not in text
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["stream_aligner"]["cost"]["branches"] > 1


async def test_the_server_stops_when_the_proxys_client_leaves(
    server: str, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    async def running() -> float:
        lines = (await client.get(f"{server}/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith("vllm:num_requests_running")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    async def becomes(number: float) -> None:
        async with asyncio.timeout(BOUND):
            while await running() != number:  # noqa: ASYNC110  (a server's gauge has no event)
                await asyncio.sleep(0.02)

    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": EXAMPLES[0]}],
        "stream": True,
        "max_tokens": 900,
        "ignore_eos": True,
        "stream_aligner": {"mode": "off"},
    }
    async with serve(create_app(settings(server, tmp_path, "[]"))) as proxy:
        async with client.stream("POST", f"{proxy}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if '"content"' in line:
                    break
            await becomes(1)
        await becomes(0)
