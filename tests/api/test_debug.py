"""/debug: what the process is doing, without text and without secrets."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr

from stream_aligner_proxy.api.debug import redacted
from tests.api.proxy import proxy
from tests.fakes import FunctionAligner
from tests.observers.traffic import SECRET, Busy, busy, busy_with, config

pytestmark = pytest.mark.anyio


async def debug(busy_one: Busy) -> dict[str, Any]:
    answer = await busy_one.client.get("/debug")
    assert answer.status_code == 200
    return answer.json()


async def test_it_is_off_unless_it_is_switched_on() -> None:
    async with busy() as b:
        assert (await b.client.get("/debug")).status_code == 404


async def test_an_idle_process_says_what_it_is() -> None:
    async with busy(debug=True) as b:
        await b.ask()
        told = await debug(b)
    assert told["tasks"] == sum(told["tasks_by_coroutine"].values()) > 1
    assert told["tasks_by_coroutine"]["Lag._sample"] == 1
    assert (told["open_replies"], told["open_branches"], told["open_requests"]) == ([], 0, 0)
    assert told["upstreams"] == {"main": 0, "away": 0}
    assert told["aligners"] == {"default": {"backend": "function", "ready": True, "waiting": 0}}
    assert told["event_loop"]["worst_lag_seconds"] >= told["event_loop"]["lag_seconds"] >= 0
    process = told["process"]
    assert process["resident_bytes"] > 10_000_000
    assert process["fds"] >= process["connections"] > 0
    assert process["uptime_seconds"] > 0
    assert len(process["gc"]["stats"]) == 3
    assert {"fastapi", "uvicorn", "aiohttp", "pydantic"} <= set(told["versions"])
    assert told["configuration"]["alignment"]["mode"] == "stream"


async def test_an_open_reply_is_told_without_its_text() -> None:
    async with busy(debug=True) as b:
        idle = (await debug(b))["tasks"]
        body = b.body(f"hold the first, {SECRET}", stream=True)
        request = b.client.build_request(
            "POST", "/v1/chat/completions", json=body, headers={"x-request-id": "mine"}
        )
        sent = asyncio.create_task(b.client.send(request, stream=True))
        await b.upstream.until(lambda up: up.running == 1)
        told = await debug(b)
        sent.cancel()
        await asyncio.wait((sent,))
        await b.upstream.until(lambda up: not up.running)
        after = await debug(b)
    [reply] = told["open_replies"]
    assert reply.pop("age_seconds") >= 0
    assert reply == {
        "request_id": "mine",
        "path": "chat/completions",
        "mode": "stream",
        "route": "scripted",
        "streamed": True,
        "upstream": None,
        "waits_for": "upstream",
        "open_branches": 1,
        "first_text_seconds": None,
    }
    assert told["open_branches"] == told["open_requests"] == told["upstreams"]["main"] == 1
    assert told["tasks"] > idle
    assert SECRET not in json.dumps(told)
    assert after["open_replies"] == []


async def test_a_reply_says_whom_it_waits_for() -> None:
    gate = asyncio.Event()
    aligner = FunctionAligner(gate=gate)
    async with proxy(aligner=aligner, server={"debug": True}) as p:
        asked = asyncio.create_task(p.post())
        async with asyncio.timeout(10):
            while not aligner.running:  # noqa: ASYNC110 - it has no events
                await asyncio.sleep(0.01)
        [reply] = (await p.client.get("/debug")).json()["open_replies"]
        gate.set()
        assert (await asked).status_code == 200
    assert (reply["waits_for"], reply["upstream"]) == ("aligner", "main")


def _with_secrets(behind: str, **server: Any) -> dict[str, Any]:
    made = config(behind, **server)
    made["upstreams"][0] |= {
        "api_key": "sk-hidden-1",
        "headers": {"x-org": "hidden-2"},
        "query": {"code": "hidden-3"},
    }
    made["aligner"] |= {"api_key": "hidden-4", "urls": ["http://10.1.2.3:8000/v1"]}
    return made


async def test_no_secret_of_the_configuration_is_in_it() -> None:
    async with busy_with(_with_secrets, debug=True) as b:
        answer = await b.client.get("/debug")
    assert "hidden" not in answer.text
    told = answer.json()["configuration"]
    upstream = told["upstreams"][0]
    assert (upstream["api_key"], upstream["headers"], upstream["query"]) == (
        "***",
        {"x-org": "***"},
        {"code": "***"},
    )
    assert told["aligner"]["api_key"] == "***"
    assert told["aligner"]["urls"] == ["http://10.1.2.3:8000/v1"]
    assert told["aligner"]["prefix_cache_tokens"] is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"a": SecretStr("x")}, {"a": "***"}),
        ({"api_key": "x", "api_key_env": "NAME"}, {"api_key": "***", "api_key_env": "NAME"}),
        ({"keys": [{"name": "a", "hash": "x"}]}, {"keys": [{"name": "a", "hash": "***"}]}),
        ({"keys": ["x", "y"]}, {"keys": ["***", "***"]}),
        ({"redis": "redis://user:pw@host:6379/0?a=b"}, {"redis": "redis://host:6379/0"}),
        ({"url": "http://[bad"}, {"url": "***"}),
        (
            {"max_tokens": 5, "timeouts": {"total": 1.5}},
            {"max_tokens": 5, "timeouts": {"total": 1.5}},
        ),
        (
            {"password": 5, "token": None, "page": True},
            {"password": "***", "token": None, "page": True},
        ),
    ],
)
def test_what_could_be_a_secret_is_hidden(given: dict[str, Any], told: dict[str, Any]) -> None:
    assert redacted(given) == told
