"""Anything at all as a request body, and anything as an upstream's stream: an answer that is valid,
in time, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.api.proxy import QUESTION, REPLY, replacing, settings
from tests.api.test_conformance import Raw, chunk
from tests.servers import serve
from tests.strict import chat, events

# A hang is a failure: everything here takes milliseconds.
_TOO_LONG = 20
_PATIENT = examples(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Standing:
    """A proxy that stands in a loop of its own while examples are run against it."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient, upstream: Any) -> None:
        self._runner = runner
        self._client = client
        self.upstream = upstream
        self._tasks = 0

    def post(self, content: bytes, path: str = "/v1/chat/completions") -> httpx.Response:
        """The answer, after which no task of a session or an upstream's stream is left."""
        return self._runner.run(self._post(content, path))

    async def _post(self, content: bytes, path: str) -> httpx.Response:
        async with asyncio.timeout(_TOO_LONG):
            answer = await self._client.post(
                path, content=content, headers={"content-type": "application/json"}
            )
            while left():  # noqa: ASYNC110  (they end a turn or two after the answer)
                await asyncio.sleep(0.001)
        return answer


def left() -> list[str]:
    """Tasks of a request that are still there."""
    names = [getattr(t.get_coro(), "__qualname__", "") for t in asyncio.all_tasks()]
    return [n for n in names if n.startswith(("Session.", "HttpOut.", "_Choice.", "Exchange"))]


@asynccontextmanager
async def standing(
    runner: asyncio.Runner, upstream: Any, aligner: Aligner | None = None
) -> AsyncIterator[Standing]:
    async with serve(upstream) as behind:
        app = create_app(settings(behind), aligner=aligner or replacing(eats="She eats two."))
        async with (
            serve(app) as address,
            httpx.AsyncClient(base_url=address, trust_env=False, timeout=None) as client,
        ):
            yield Standing(runner, client, upstream)


@pytest.fixture(scope="module")
def over_script() -> Iterator[Standing]:
    with asyncio.Runner() as runner:
        stack = standing(runner, ScriptedUpstream(Script((Rule(REPLY),))))
        yield runner.run(stack.__aenter__())
        runner.run(stack.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def over_bytes() -> Iterator[Standing]:
    with asyncio.Runner() as runner:
        stack = standing(runner, Raw([]))
        yield runner.run(stack.__aenter__())
        runner.run(stack.__aexit__(None, None, None))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
GOOD: dict[str, Any] = {"model": "scripted", "messages": QUESTION}
FIELDS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
    "stop", "seed", "temperature", "tools", "tool_choice", "response_format", "logprobs",
    "top_logprobs", "modalities", "functions", "stream_aligner", "metadata", "prediction",
)  # fmt: skip
ALMOST = st.builds(
    lambda changes, gone: {k: v for k, v in {**GOOD, **changes}.items() if k not in gone},
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON, max_size=4),
    st.sets(st.sampled_from(("model", "messages")), max_size=1),
)


def answered(answer: httpx.Response) -> None:
    """A reply, or a refusal in OpenAI's shape, and never the proxy's own failure."""
    assert answer.status_code in (200, 400, 404, 413, 422, 502), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] != "internal_error"
    elif answer.headers["content-type"].startswith("text/event-stream"):
        events([answer.content])
    else:
        assert answer.json()["choices"]


@_PATIENT
@given(body=ALMOST)
def test_a_body_that_is_almost_right(over_script: Standing, body: dict[str, Any]) -> None:
    try:
        content = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, TypeError):  # half a character
        return
    answered(over_script.post(content))


@_PATIENT
@given(
    content=st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
)
def test_a_body_that_is_nothing(over_script: Standing, content: bytes) -> None:
    answer = over_script.post(content)
    assert answer.status_code == 400
    answered(answer)


FRAMES = st.one_of(
    st.sampled_from(["One. ", "Two", ". Three", "\n\n", "```", "é✓", ""]).map(chunk),
    st.sampled_from(["stop", "length", "odd"]).map(lambda reason: chunk(finish=reason)),
    st.builds(
        lambda usage: {"choices": [], "usage": usage},
        st.dictionaries(
            st.sampled_from(["prompt_tokens", "completion_tokens"]), st.integers(-5, 50)
        ),
    ),
    JSON.map(lambda value: {"choices": value}),
    JSON.map(lambda value: {"choices": [{"index": 0, "delta": value}]}),
    JSON.map(lambda value: {"choices": [{"index": 0, "delta": {"tool_calls": value}}]}),
    JSON.map(lambda value: {"error": value}),
    JSON,
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Mostly sound events, some garbage, cut anywhere."""
    newline = draw(st.sampled_from([b"\n", b"\r\n"]))
    data = b""
    for frame in draw(st.lists(FRAMES, max_size=8)):
        try:
            data += b"data: " + orjson.dumps(frame, option=orjson.OPT_NON_STR_KEYS) + newline * 2
        except (orjson.JSONEncodeError, TypeError):
            data += b"data: {\xff" + newline * 2
    if draw(st.booleans()):
        data += b"data: [DONE]" + newline * 2
    if data and draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=6)) + data[at + 1 :]
    pieces, at = [], 0
    for size in draw(st.lists(st.integers(1, 40), max_size=30)):
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in (*pieces, data[at:]) if piece]


@_PATIENT
@given(
    pieces=streams(),
    mode=st.sampled_from(["stream", "whole", "shadow"]),
    stream=st.booleans(),
    n=st.integers(1, 2),
)
def test_whatever_the_upstream_sends(
    over_bytes: Standing, pieces: list[bytes], mode: str, stream: bool, n: int
) -> None:
    over_bytes.upstream.pieces = pieces
    body = {
        "model": "m", "messages": QUESTION, "stream": stream, "n": n,
        "stream_aligner": {"mode": mode},
    }  # fmt: skip
    answer = over_bytes.post(orjson.dumps(body))
    if answer.status_code == 200 and stream:
        chat(events([answer.content]))
        return
    if answer.status_code == 200:
        assert len(answer.json()["choices"]) == n
        return
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] != "internal_error", error
