"""The embedded upstream over real HTTP, with a tiny random model."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.demo.engine import Engine
from stream_aligner_proxy.demo.upstream import build_app
from stream_aligner_proxy.upstream.client import HttpUpstream
from tests.demo.tiny import build
from tests.servers import serve

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "Anna has three apples."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return Engine(model)


@asynccontextmanager
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serve(build_app(engine)) as address,
        httpx.AsyncClient(base_url=address, trust_env=False, timeout=30) as http,
    ):
        yield http


async def ask(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    body = {"messages": USER, "max_tokens": 20, "temperature": 0, **body}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def frames(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    body = {"messages": USER, "max_tokens": 20, "temperature": 0, "stream": True, **body}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_stream_and_a_whole_reply_say_the_same(engine: Engine) -> None:
    async with client(engine) as http:
        for extra in ({}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}):
            whole = await ask(http, **extra)
            stream = await frames(http, stream_options={"include_usage": True}, **extra)
            *deltas, last = stream
            text = "".join(f["choices"][0]["delta"].get("content", "") for f in deltas)
            choice = whole["choices"][0]
            assert text == choice["message"]["content"] != ""
            assert deltas[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
            assert (last["choices"], last["usage"]) == ([], whole["usage"])
            assert all(frame["usage"] is None for frame in deltas)


async def test_running_usage_counts_every_token(engine: Engine) -> None:
    async with client(engine) as http:
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await frames(http, stream_options=options)
    counts = [frame["usage"]["completion_tokens"] for frame in stream]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 20)


async def test_a_seed_gives_the_same_reply_under_load(engine: Engine) -> None:
    async with client(engine) as http:
        alone = await ask(http, temperature=1.0, seed=3, max_tokens=60)
        together = await asyncio.gather(
            *(ask(http, temperature=1.0, seed=seed, max_tokens=60) for seed in (3, 4, 3, 5))
        )
    texts = [reply["choices"][0]["message"]["content"] for reply in (alone, *together)]
    assert texts[0] == texts[1] == texts[3]
    assert len(set(texts)) == 3


async def test_a_continued_message_stays_open_and_is_tokenised_as_its_text(engine: Engine) -> None:
    async with client(engine) as http:
        ids = (await http.post("/tokenize", json={"messages": USER})).json()["tokens"]
        reply = await http.post(
            "/v1/completions", json={"prompt": ids, "max_tokens": 30, "temperature": 0}
        )
        chat = await ask(http, max_tokens=30)
        text = chat["choices"][0]["message"]["content"]
        assert reply.json()["choices"][0]["text"] == text
        prefix = [*USER, {"role": "assistant", "content": "Anna has two"}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        open_ids = (await http.post("/tokenize", json={"messages": prefix, **flags})).json()
        told = (await http.post("/tokenize", json={"prompt": "Anna has two"})).json()["tokens"]
        assert open_ids["tokens"] == ids + told
        carried = await ask(http, messages=prefix, **flags)
        assert carried["usage"]["prompt_tokens"] == open_ids["count"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"continue_final_message": True}, 400, "continue_final_message"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            400,
            "continue_final_message",
        ),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"stop": [""]}, 400, "stop"),
        ({"n": 2}, 400, "n"),
        ({"tools": [{}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, None),
        ({"messages": [{"role": "user", "content": "apples " * 300}]}, 400, "messages"),
    ],
)
async def test_bad_requests_are_refused_in_openais_shape(
    engine: Engine, body: dict[str, Any], status: int, param: str | None
) -> None:
    async with client(engine) as http:
        answer = await http.post("/v1/chat/completions", json={"messages": USER, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


async def test_malformed_json_is_refused(engine: Engine) -> None:
    async with client(engine) as http:
        answer = await http.post("/v1/chat/completions", content=b"{")
    assert (answer.status_code, "error" in answer.json()) == (400, True)


async def test_the_limit_ends_with_length_and_the_context_lowers_it_silently(
    engine: Engine,
) -> None:
    async with client(engine) as http:
        short = await ask(http, max_tokens=3)
        long = await ask(http, max_tokens=100_000, temperature=1, seed=1)
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 3
    assert long["usage"]["total_tokens"] <= engine.context


async def test_a_stop_string_ends_the_reply_before_it_and_never_shows(engine: Engine) -> None:
    async with client(engine) as http:
        free = (await ask(http, max_tokens=40))["choices"][0]["message"]["content"]
        stop = free[10:14]
        expected = free[: free.find(stop)]
        cut = (await ask(http, max_tokens=40, stop=[stop]))["choices"][0]
        stream = await frames(http, max_tokens=40, stop=stop)
    assert (cut["message"]["content"], cut["finish_reason"]) == (expected, "stop")
    text = "".join(frame["choices"][0]["delta"]["content"] for frame in stream)
    assert text == expected


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine(model: Path, stream: bool) -> None:
    engine = Engine(model, tokens_per_second=20)
    async with client(engine) as http:
        body = {"messages": USER, "max_tokens": 200, "stream": stream, "temperature": 0}
        task = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        async with asyncio.timeout(5):
            while "running 1" not in (await http.get("/metrics")).text:
                pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(1):
            while "running 0" not in (await http.get("/metrics")).text:
                pass


async def test_the_proxys_client_reads_it_as_vllm(engine: Engine) -> None:
    async with serve(build_app(engine)) as address:
        upstream = HttpUpstream("main", f"{address}/v1", "vllm")
        body = {"model": "demo-upstream", "messages": USER, "temperature": 0}
        request = ChatRequest("demo-upstream", body, ())
        async with upstream.open(request, prefix="Anna has", max_tokens=12) as chunks:
            got = [chunk async for chunk in chunks]
        assert [m["id"] for m in await upstream.models()] == ["demo-upstream"]
        await upstream.aclose()
    usage = got[-1].usage
    assert usage is not None
    assert usage.completion_tokens == sum(chunk.tokens for chunk in got) == 12
