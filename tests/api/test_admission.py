"""What is too much is told to come again; what takes too long ends."""

import asyncio

import pytest

from stream_aligner_proxy.api.admission import Admission, Limits
from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import REPLY, error_of, parse_frames, proxy
from tests.waiting import until

pytestmark = pytest.mark.anyio
HELD = Rule(REPLY, when="hold", fault=Fault(hold=2))
LONG = [{"role": "user", "content": "hold"}]


async def test_above_the_limit_requests_are_told_to_come_again_and_places_come_back() -> None:
    async with proxy(HELD, Rule(REPLY), server={"max_open": 2}) as p:
        held = [asyncio.create_task(p.post(messages=LONG)) for _ in range(2)]
        await until(lambda: p.upstream.running == 2)
        refused = await p.post()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert error_of(refused)["code"] == "overloaded"
        anthropic = await p.client.post("/v1/messages", json=p.body())
        assert anthropic.status_code == 503
        assert anthropic.json()["type"] == "error"
        for path in ("/healthz", "/readyz", "/metrics", "/status", "/"):
            assert (await p.client.get(path)).status_code == 200
        p.upstream.release()
        assert [(await task).status_code for task in held] == [200, 200]
        assert (await p.post()).status_code == 200
        metrics = (await p.client.get("/metrics")).text
    assert 'stream_aligner_shed_requests_total{reason="open"} 2.0' in metrics


async def test_bodies_are_held_up_to_a_bound_of_them_all() -> None:
    text = [{"role": "user", "content": "hold " + "x" * 40_000}]
    async with proxy(HELD, Rule(REPLY), server={"max_held_bytes": 100_000}) as p:
        held = [asyncio.create_task(p.post(messages=text)) for _ in range(2)]
        await until(lambda: p.upstream.running == 2)
        refused = await p.post(messages=text)
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "overloaded"
        p.upstream.release()
        assert [(await task).status_code for task in held] == [200, 200]
        text = [{"role": "user", "content": "y" * 40_000}]
        assert (await p.post(messages=text)).status_code == 200


async def test_a_process_short_of_memory_sheds() -> None:
    async with proxy(server={"shed_above_mib": 64}) as p:
        refused = await p.post()
        assert refused.status_code == 503
        assert "memory" in error_of(refused)["message"]
        assert (await p.client.get("/healthz")).status_code == 200


def test_memory_is_looked_at_only_now_and_then() -> None:
    now = 100.0
    admission = Admission(clock=lambda: now)
    first = admission.memory_mib()
    assert first > 1
    ballast = bytearray(b"x") * (64 * 1024 * 1024)
    assert admission.memory_mib() == first
    now += 1
    assert admission.memory_mib() > first
    assert len(ballast)
    assert admission.refusal(Limits(shed_above_mib=int(first) + 10_000)) is None


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reply_that_takes_too_long_ends(stream: bool) -> None:
    slow = {"timeouts": {"between_chunks": 60}}
    held = Rule(REPLY, fault=Fault(hold=8))
    async with proxy(held, upstream=slow, server={"reply_seconds": 0.3}) as p:
        response = await p.post(messages=LONG, stream=stream)
        if stream:
            frames = parse_frames(response.text)
            (error,) = [frame["error"] for frame in frames if "error" in frame]
        else:
            assert response.status_code == 504
            error = error_of(response)
        assert error["code"] == "deadline_exceeded"
        await until(lambda: p.upstream.running == 0)
