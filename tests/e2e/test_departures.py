"""A client that leaves: the upstream's request is gone at once, and nothing goes on running."""

import asyncio

import httpx
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.demo.script import parse
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import build
from tests.servers import serve

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "hello"}]
SECOND = 5.0  # a second, and what a busy machine adds

BEFORE_HEADERS = {"reply": "One. Two.", "fault": {"stall": "headers"}}
BEFORE_FIRST_TOKEN = {"reply": "One. Two.", "fault": {"stall": "first"}}
MID_SENTENCE = {"reply": "One two. Three four. Five six", "fault": {"stall": 5}}


def request_tasks() -> set[str]:
    """Names of running coroutines that belong to a request of the proxy."""
    names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return {name for name in names if name.startswith(("Session.", "HttpOut."))}


@pytest.mark.parametrize("rule", [BEFORE_HEADERS, BEFORE_FIRST_TOKEN, MID_SENTENCE])
@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_upstream_request_is_gone_within_a_second_and_no_task_is_left(
    tmp_path, rule, mode, stream
):
    if mode == "off" and not stream and rule is not BEFORE_HEADERS:
        pytest.skip("an upstream that does not stream has nothing to send before its answer")
    rules = tmp_path / "rules.yaml"
    rules.write_text("[]")
    upstream = ScriptedUpstream(parse({"rules": [rule]}))
    async with serve(upstream) as upstream_url:
        main = {"name": "m", "base_url": f"{upstream_url}/v1", "dialect": "vllm", "probe": False}
        settings = build(
            {
                "upstreams": [main],
                "aligner": {"backend": "rules", "path": str(rules)},
                "alignment": {"mode": mode},
            },
            environ={},
        )
        async with (
            serve(create_app(settings)) as url,
            httpx.AsyncClient(trust_env=False, timeout=30) as client,
        ):

            async def ask() -> None:
                body = {"model": "scripted", "messages": MESSAGES, "stream": stream}
                async with client.stream(
                    "POST", f"{url}/v1/chat/completions", json=body
                ) as response:
                    async for _ in response.aiter_bytes():
                        pass

            asking = asyncio.create_task(ask())
            await upstream.until(lambda u: u.opened == 1)
            if rule is MID_SENTENCE:
                await upstream.until(lambda u: len(u.requests[0].sent.split()) >= 5)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await upstream.until(lambda u: u.running == 0, seconds=SECOND)
            assert upstream.requests[0].left_at is not None
            for _ in range(1000):  # turns of the event loop, not time
                if not request_tasks():
                    break
                await asyncio.sleep(0)
            assert not request_tasks()
