"""Several replies to one request: each aligned by itself, all ended together."""

import asyncio
from typing import Any

import pytest

from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Chunking, Fault, Rule
from tests.api.proxy import REPLY, proxy, replacing
from tests.api.test_leaving import half_open, reply_tasks
from tests.fakes import FunctionAligner
from tests.strict import Event, chat

pytestmark = pytest.mark.anyio

# With seed 7 the choices 0, 1 and 2 have the seeds 7, 8 and 9.
OTHER = "Ben has 4 apples. He eats two. So 2 are left."


def by_choice(frames: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for frame in frames:
        for choice in frame["choices"] if frame != "[DONE]" else ():
            said = choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + said
    return texts


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow"])
async def test_each_choice_has_a_text_usage_and_history_of_its_own(mode: str) -> None:
    rules = (Rule(OTHER, seed=8), Rule(REPLY))
    asked = {"n": 3, "seed": 7, "stream_aligner": {"mode": mode, "provenance": True}}
    async with proxy(*rules, aligner=replacing(Ben="Ben has 5 apples.")) as p:
        frames = await p.frames(**asked, stream_options={"include_usage": True})
        whole = (await p.post(**asked)).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts == list(dict(sorted(by_choice(frames).items())).values())
    assert texts[0] == texts[2] == REPLY
    if mode == "stream":
        assert texts[1].startswith("Ben has 5 apples.")
    told = whole["stream_aligner"]["choices"]
    assert [one["cost"]["corrections"] for one in told] == [0, 1, 0]
    for one, text in zip(told, texts, strict=True):
        said = "".join(sentence["text"] for sentence in one["sentences"])
        assert said == text or mode == "shadow"
    alone = [choice["message"]["content"] for choice in whole["choices"]]
    assert whole["usage"] == frames[-2]["usage"]
    assert whole["usage"]["completion_tokens"] >= len(" ".join(alone).split())
    cost = whole["stream_aligner"]["cost"]
    assert cost["reviews"] == sum(one["cost"]["reviews"] for one in told)


async def test_the_prompt_is_counted_once_and_every_completion() -> None:
    async with proxy() as p:
        one = (await p.post()).json()["usage"]
        three = (await p.post(n=3)).json()["usage"]
    assert three["prompt_tokens"] == one["prompt_tokens"]
    assert three["completion_tokens"] == 3 * one["completion_tokens"]
    assert three["total_tokens"] == three["prompt_tokens"] + three["completion_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_one_choice_that_fails_ends_them_all_with_one_error(stream: bool) -> None:
    held = Rule(REPLY, fault=Fault(hold=6))
    broken = Rule(REPLY, seed=8, fault=Fault(error_after=6))
    never: dict[str, Any] = {"alignment": {"max_resumes": 0}, "upstream": {"timeouts": {}}}
    async with proxy(broken, held, **never) as p:
        response = await p.post(n=3, seed=7, stream=stream)
        await p.upstream.until(lambda upstream: upstream.running == 0)
        assert reply_tasks() == []
        metrics = (await p.client.get("/metrics")).text
    if not stream:
        assert response.status_code == 502
        assert response.json()["error"]["message"] == "scripted error"
    else:
        data = [line[6:] for line in response.text.split("\n\n") if line]
        choices, error = chat([Event(said) for said in data])
        assert error is not None
        assert error["message"] == "scripted error"
        assert all(choice.finish_reason is None for choice in choices.values())
    assert 'replies_total{mode="stream",outcome="cancelled"} 2.0' in metrics


async def test_a_choice_that_has_ended_stays_ended_when_another_fails() -> None:
    broken = Rule(REPLY, seed=8, fault=Fault(hold=6, error_after=7))
    async with (
        proxy(broken, Rule(REPLY), alignment={"max_resumes": 0}) as p,
        half_open(p, n=2, seed=7, stream=True) as reader,
    ):
        ended = await asyncio.wait_for(reader.readuntil(b'"finish_reason":"stop"'), 5)
        assert ended.rpartition(b"data: ")[2].count(b'"index":0') == 1
        p.upstream.release()
        rest = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 5)
    assert b'"error":' in rest
    assert b'"finish_reason":"stop"' not in rest


@pytest.mark.parametrize("stream", [True, False])
async def test_the_clients_leaving_ends_every_choice(stream: bool) -> None:
    rule = Rule(REPLY, fault=Fault(stall=4))
    async with proxy(rule, upstream={"timeouts": {}}) as p:
        async with half_open(p, n=3, stream=stream):
            await p.upstream.until(lambda upstream: upstream.opened == 3)
        await p.upstream.until(lambda upstream: upstream.running == 0)
        assert reply_tasks() == []


async def test_a_held_choice_does_not_hold_the_others() -> None:
    def judge(review: Review) -> Verdict:
        return Verdict()

    rules = (Rule(REPLY, seed=7, fault=Fault(hold=2)), Rule(REPLY))
    async with (
        proxy(*rules, aligner=FunctionAligner(judge)) as p,
        half_open(p, n=2, seed=7, stream=True) as reader,
    ):
        said = await asyncio.wait_for(reader.readuntil(b'"finish_reason":"stop"'), 5)
        assert said.rpartition(b"data: ")[2].count(b'"index":1') == 1
        assert p.upstream.running == 1
        p.upstream.release()
        await asyncio.wait_for(reader.readuntil(b"[DONE]"), 5)


async def test_more_choices_than_the_operator_lets_are_refused_by_name() -> None:
    async with proxy(server={"max_choices": 2}) as p:
        refused = await p.post(n=3)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "n"
        assert "at most 2" in refused.json()["error"]["message"]
        assert p.upstream.requests == []
        assert len((await p.post(n=2)).json()["choices"]) == 2
        assert (await p.post(n=129)).json()["error"]["param"] == "n"
        completed = await p.client.post(
            "/v1/completions", json={"model": "scripted", "prompt": "One", "n": 3}
        )
        assert (completed.status_code, completed.json()["error"]["param"]) == (400, "n")
        relayed = await p.post(n=3, stream_aligner={"mode": "off"})
    assert [choice["index"] for choice in relayed.json()["choices"]] == [0, 1, 2]


async def test_relayed_choices_are_the_upstreams_own_and_end_with_the_last() -> None:
    async with proxy(Rule(REPLY, chunk=Chunking("words"), fault=Fault(done=False))) as p:
        frames = await p.frames(n=2, stream_aligner={"mode": "off"})
        assert [request.body["n"] for request in p.upstream.requests] == [2]
    assert frames[-1] == "[DONE]"
    assert by_choice(frames) == {0: REPLY, 1: REPLY}


async def test_every_choice_goes_out_under_an_id_of_its_own() -> None:
    async with proxy() as p:
        await p.post(n=3, headers={"x-request-id": "mine"})
        ids = {request.headers["x-request-id"] for request in p.upstream.requests}
        assert all("n" not in request.body for request in p.upstream.requests)
    assert ids == {"mine", "mine-c1", "mine-c2"}
