"""Breakers over HTTP: what clients, health, status and metrics are told while a part is down."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream_aligner_proxy.core.errors import ReviewError, Unreviewable
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from tests.api.proxy import REPLY, Proxy, error_of, extensions, proxy, text_of
from tests.fakes import FunctionAligner
from tests.waiting import until, until_told

pytestmark = pytest.mark.anyio

SLOW = {"failures": 2, "pause": 1000, "longest_pause": 1000}
QUICK = {"failures": 2, "pause": 0.01, "longest_pause": 0.02}


class Sick(FunctionAligner):
    """Fails while it is `down`."""

    def __init__(self) -> None:
        super().__init__(self._judge)
        self.down = True
        self.error: Exception = ReviewError("no verdict")

    def _judge(self, review: Review) -> Verdict:
        if self.down:
            raise self.error
        return Verdict()


def behind(breaker: dict[str, Any]) -> dict[str, Any]:
    """Settings whose aligner has that breaker."""
    return {"aligner_settings": {"breaker": breaker}}


async def value(p: Proxy, metric: str, **labels: str) -> float:
    text = (await p.client.get("/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"stream_aligner_{metric}" and labels.items() <= sample.labels.items()
    )


# --- upstreams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stream", "off"])
@pytest.mark.parametrize("stream", [True, False])
async def test_while_the_only_upstream_is_down_requests_fail_at_once(
    mode: str, stream: bool
) -> None:
    ill = Rule(fault=Fault(status=500))
    async with proxy(ill, upstream={"breaker": SLOW, "retries": 0}) as p:
        how = {"stream": stream, "stream_aligner": {"mode": mode}}
        while (await p.client.get("/status")).json()["upstreams"][0]["health"] == "ok":
            await p.post(**how)
        # The request that opened it may have been refused when it was taken up again.
        sent_away = await value(p, "breaker_rejections_total", kind="upstream", name="main")
        asked = p.upstream.opened
        refused = await p.post(**how)
        assert refused.status_code == 503
        error = error_of(refused)
        assert error["code"] == "upstream_unreachable"
        assert "'main'" in error["message"]
        assert 800 <= int(refused.headers["retry-after"]) <= 1200
        assert p.upstream.opened == asked
        assert await value(p, "breaker_openings_total", kind="upstream", name="main") == 1
        rejections = await value(p, "breaker_rejections_total", kind="upstream", name="main")
        assert rejections == sent_away + 1
        assert await value(p, "breaker_open", kind="upstream", name="main") == 1
        assert await value(p, "upstream_up", upstream="main") == 0


async def test_a_model_that_is_not_known_makes_nobody_wait_for_an_upstream_that_is_down() -> None:
    ill = Rule(fault=Fault(status=500))
    async with proxy(ill, upstream={"breaker": SLOW, "retries": 0}) as p:
        for _ in range(2):
            await p.post(stream_aligner={"mode": "off"})
        listed: list[str] = []
        told = type(p.upstream).__call__

        async def counting(self, scope, receive, send):
            listed.append(scope["path"])
            await told(self, scope, receive, send)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(p.upstream), "__call__", counting)
            assert (await p.post(model="nobody")).status_code == 503
            # What it listed before is still known.
            models = (await p.client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["scripted"]
    assert listed == []


async def test_an_upstream_that_answers_a_ping_and_a_request_is_used_again() -> None:
    ill = Rule(fault=Fault(status=500))
    async with proxy(ill, upstream={"breaker": QUICK}) as p:
        for _ in range(2):
            await p.post(stream_aligner={"mode": "off"})
        p.upstream.script = Script((Rule(REPLY),))

        async def served() -> bool:
            return (await p.post()).status_code == 200

        await until_told(served)
        status = (await p.client.get("/status")).json()
        assert status["upstreams"][0]["health"] == "ok"
        assert await value(p, "breaker_open", kind="upstream") == 0


async def test_switched_off_the_upstream_is_asked_each_time() -> None:
    ill = Rule(fault=Fault(status=500))
    async with proxy(ill, upstream={"breaker": {"enabled": False, "failures": 1}}) as p:
        for _ in range(4):
            assert (await p.post(stream_aligner={"mode": "off"})).status_code == 500
        assert p.upstream.opened == 4
        assert await value(p, "breaker_rejections_total") == 0


async def test_a_reply_under_way_is_continued_though_the_breaker_opened_meanwhile() -> None:
    gate = asyncio.Event()

    def judge(review: Review) -> Verdict:
        return Verdict("She eats two.") if "eats" in review.sentence else Verdict()

    continued = Rule(" So 1 is left.", after="two\\.$")
    whole = Rule(REPLY, when="How many")
    ill = Rule(when="Fail", fault=Fault(status=500))
    aligner = FunctionAligner(judge, gate)
    async with proxy(
        continued, whole, ill, aligner=aligner, upstream={"breaker": SLOW, "retries": 0}
    ) as p:
        reply = asyncio.create_task(p.post())
        await until(lambda: aligner.running > 0)
        fail = [{"role": "user", "content": "Fail"}]
        for _ in range(2):
            await p.post(messages=fail, stream_aligner={"mode": "off"})
        assert (await p.post(messages=fail)).status_code == 503
        gate.set()
        answer = (await reply).json()
    assert (
        answer["choices"][0]["message"]["content"]
        == "Anna has 3 apples. She eats two. So 1 is left."
    )


# --- aligners ------------------------------------------------------------------------------------


async def _open(p: Proxy) -> None:
    while (await p.client.get("/status")).json()["aligners"][0]["state"] == "ok":
        await p.post()


@pytest.mark.parametrize("mode", ["stream", "whole"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_closed_route_refuses_new_requests_before_the_upstream_is_asked(
    mode: str, stream: bool
) -> None:
    async with proxy(aligner=Sick(), **behind(SLOW)) as p:
        await _open(p)
        asked = p.upstream.opened
        for path, body in (
            ("chat/completions", p.body(stream)),
            ("completions", {"model": "scripted", "prompt": "q", "stream": stream}),
            ("responses", {"model": "scripted", "input": "q", "stream": stream}),
            ("align", {"question": "q", "answer": "a."}),
        ):
            extra = {} if path in ("align", "responses") else {"stream_aligner": {"mode": mode}}
            refused = await p.client.post(f"/v1/{path}", json=body | extra)
            assert refused.status_code == 503, path
            assert refused.json()["error"]["code"] == "aligner_unavailable"
            assert 800 <= int(refused.headers["retry-after"]) <= 1200
        message = {"model": "scripted", "max_tokens": 9, "messages": p.body()["messages"]}
        refused = await p.client.post("/v1/messages", json=message | {"stream": stream})
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
        assert p.upstream.opened == asked
        assert await value(p, "breaker_openings_total", kind="aligner", name="default") == 1
        assert await value(p, "breaker_rejections_total", kind="aligner", name="default") >= 5


async def test_what_needs_no_review_is_served_all_the_same() -> None:
    async with proxy(aligner=Sick(), **behind(SLOW)) as p:
        await _open(p)
        for mode in ("off", "shadow"):
            answer = await p.post(stream_aligner={"mode": mode})
            assert answer.json()["choices"][0]["message"]["content"] == REPLY


@pytest.mark.parametrize("mode", ["stream", "whole"])
async def test_on_an_open_route_sentences_pass_unreviewed_and_nobody_waits(mode: str) -> None:
    aligner = Sick()
    alignment = {"fail_open": True, "mode": mode}
    async with proxy(aligner=aligner, alignment=alignment, **behind(SLOW)) as p:
        await _open(p)
        asked = len(aligner.asked)
        frames = await p.frames(stream_aligner={"provenance": True})
        assert text_of(frames) == REPLY
        assert {sentence["verdict"] for sentence in extensions(frames, "sentence")} == {
            "unreviewed"
        }
        assert len(aligner.asked) == asked
        ready = await p.client.get("/readyz")
        assert (ready.status_code, ready.json()["aligner"]) == (200, "open")
        assert (await p.client.get("/status")).json()["default"]["fail_open"] is True


async def test_in_shadow_a_failed_review_is_recorded_and_the_original_delivered() -> None:
    async with proxy(aligner=Sick(), alignment={"mode": "shadow"}, **behind(SLOW)) as p:
        frames = await p.frames(stream_aligner={"provenance": True})
        assert text_of(frames) == REPLY
        assert {sentence["verdict"] for sentence in extensions(frames, "sentence")} == {
            "unreviewed"
        }
        assert (await p.client.get("/readyz")).status_code == 200


async def test_a_replica_whose_aligner_is_down_leaves_the_service_and_comes_back() -> None:
    aligner = Sick()
    async with proxy(aligner=aligner, **behind(QUICK)) as p:
        await _open(p)
        ready = await p.client.get("/readyz")
        assert (ready.status_code, ready.json()["aligner"]) == (503, "open")
        aligner.down = False

        async def is_ready() -> bool:
            return (await p.client.get("/readyz")).status_code == 200

        await until_told(is_ready)
        assert (await p.post()).json()["choices"][0]["message"]["content"] == REPLY
        assert (await p.client.get("/status")).json()["aligners"][0]["state"] == "ok"
        assert await value(p, "breaker_open", kind="aligner") == 0


async def test_sentences_that_cannot_be_reviewed_shut_nobody_out() -> None:
    aligner = Sick()
    aligner.error = Unreviewable("the sentence does not fit the aligner's window")
    async with proxy(aligner=aligner, **behind(SLOW)) as p:
        for _ in range(4):
            assert error_of(await p.post())["code"] == "review_failed"
        assert (await p.client.get("/readyz")).status_code == 200


async def test_each_route_says_for_itself_whether_it_fails_open() -> None:
    routes = [
        {"model": "strict", "to": [{"upstream": "main", "model": "scripted"}]},
        {
            "model": "lenient",
            "to": [{"upstream": "main", "model": "scripted"}],
            "alignment": {"fail_open": True},
        },
    ]
    async with proxy(aligner=Sick(), routes=routes, **behind(SLOW)) as p:
        assert (await p.post(model="strict")).status_code == 502
        for _ in range(3):
            lenient = await p.post(model="lenient")
            assert lenient.json()["choices"][0]["message"]["content"] == REPLY
        assert (await p.post(model="strict")).status_code == 503
        told = (await p.client.get("/status")).json()["routes"]
        assert [route["fail_open"] for route in told] == [False, True]
        # The strict route cannot be served.
        assert (await p.client.get("/readyz")).status_code == 503
