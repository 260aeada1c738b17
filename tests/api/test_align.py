"""`POST /v1/align`: given answers, reviewed by the loop itself."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stream_aligner_proxy.api.align_response import AT_ONCE
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Rule
from tests.api.proxy import REPLY, error_of, proxy, replacing
from tests.fakes import FunctionAligner

pytestmark = pytest.mark.anyio

ASK = {"question": "How many?", "answer": REPLY}


async def align(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/align", json=ASK | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_given_answer_is_reviewed_sentence_by_sentence_without_an_upstream() -> None:
    asked: list[Review] = []

    def judge(review: Review) -> Verdict:
        asked.append(review)
        new = "She eats two." if "eats" in review.sentence else None
        return Verdict(new, prompt_tokens=5, completion_tokens=2)

    async with proxy(aligner=FunctionAligner(judge)) as p:
        told = await align(p.client)
    assert p.upstream.opened == 0
    assert told["object"] == "alignment"
    assert told["id"].startswith("align-")
    assert told["text"] == "Anna has 3 apples. She eats two. So 2 are left."
    assert told["changed"] is True
    assert told["ended"] is False
    assert [s["verdict"] for s in told["sentences"]] == ["keep", "replace", "keep"]
    assert "".join(s["original"] for s in told["sentences"]) == REPLY
    assert "".join(s["text"] for s in told["sentences"]) == told["text"]
    # The last sentence was judged behind the corrected one.
    assert asked[-1].committed.strip() == "Anna has 3 apples. She eats two."
    assert told["cost"]["corrections"] == 1
    judged = told["cost"]["reviews"] - told["cost"]["reviews_in_vain"]
    assert judged == 3
    assert 5 * judged <= told["usage"]["prompt_tokens"] <= 5 * told["cost"]["reviews"]


async def test_the_result_is_that_of_a_stream_which_cannot_continue() -> None:
    reply = "One is here. Two is bad.\n\n```py\nx = bad\n```\n\nThree is bad. Four is here."
    aligner = replacing(bad="It is good.")
    async with proxy(Rule(reply), aligner=aligner, upstream={"continuation": "rewrite-only"}) as p:
        streamed = await p.post(stream_aligner={"provenance": True})
        told = await align(p.client, answer=reply, question="How many?")
    body = streamed.json()
    assert told["text"] == body["choices"][0]["message"]["content"]
    timed = {"review_ms", "waited_ms", "branch"}
    theirs = body["stream_aligner"]["sentences"]
    assert [{k: v for k, v in s.items() if k not in timed} for s in told["sentences"]] == [
        {k: v for k, v in s.items() if k not in timed} for s in theirs
    ]
    assert "passed" in {s["verdict"] for s in told["sentences"]}


async def test_deletions_and_ends_are_taken() -> None:
    verdicts = {"Anna": Verdict(""), "eats": Verdict(end=True)}

    def judge(review: Review) -> Verdict:
        return next((v for word, v in verdicts.items() if word in review.sentence), Verdict())

    async with proxy(aligner=FunctionAligner(judge)) as p:
        told = await align(p.client)
    assert told["text"].strip() == "She eats one."
    assert told["ended"] is True
    assert [s["text"].strip() for s in told["sentences"]] == ["", "She eats one."]


async def test_reviews_of_one_answer_are_in_flight_together() -> None:
    gate = asyncio.Event()
    aligner = FunctionAligner(gate=gate)
    async with proxy(aligner=aligner) as p:
        task = asyncio.create_task(align(p.client))
        async with asyncio.timeout(5):
            while aligner.running < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        gate.set()
        assert (await task)["changed"] is False


async def test_an_answer_can_be_reviewed_as_a_whole() -> None:
    aligner = FunctionAligner(lambda review: Verdict(f"All of it ({review.scope})."))
    async with proxy(aligner=aligner) as p:
        told = await align(p.client, scope="whole")
    assert told["text"] == "All of it (whole)."
    assert told["scope"] == "whole"
    assert len(told["sentences"]) == 1
    assert aligner.asked[0].sentence == REPLY


async def test_the_scope_is_that_of_the_route_unless_the_request_says() -> None:
    async with proxy(alignment={"mode": "whole"}) as p:
        assert (await align(p.client))["scope"] == "whole"
        assert (await align(p.client, scope="sentence"))["scope"] == "sentence"


async def test_messages_are_the_conversation() -> None:
    aligner = FunctionAligner()
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]
    async with proxy(aligner=aligner) as p:
        await align(p.client, question=None, messages=said)
    assert [(t.role, t.text) for t in aligner.asked[0].conversation] == [
        ("system", "Be kind."),
        ("user", "Hi?"),
    ]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"answer": ""}, "answer", "invalid_value"),
        ({"answer": None}, "answer", "invalid_value"),
        ({"question": None}, "messages", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "a"}]}, "question", "invalid_value"),
        ({"question": None, "messages": [{"role": "robot"}]}, "messages[0].role", "invalid_value"),
        ({"scope": "half"}, "scope", "invalid_value"),
        ({"strength": 0.9}, "strength", "strength_not_available"),
        ({"strength": 2}, "strength", "invalid_value"),
        ({"ansver": "a"}, "ansver", "unknown_parameter"),
        ({"items": [ASK]}, "question", "unknown_parameter"),
    ],
)
async def test_a_mistake_is_a_400_that_names_the_field(
    fields: dict[str, Any], param: str, code: str
) -> None:
    aligner = FunctionAligner()
    async with proxy(aligner=aligner) as p:
        refused = await p.client.post("/v1/align", json=ASK | fields)
    assert refused.status_code == 400, refused.text
    assert (error_of(refused)["param"], error_of(refused)["code"]) == (param, code)
    assert aligner.asked == []


async def test_what_the_aligner_cannot_is_refused() -> None:
    aligner = FunctionAligner()
    aligner.scopes = frozenset(("sentence",))
    async with proxy(aligner=aligner) as p:
        refused = await p.client.post("/v1/align", json=ASK | {"scope": "whole"})
    assert error_of(refused)["code"] == "scope_not_available"
    async with proxy() as p:
        long = await p.client.post(
            "/v1/align", json=ASK | {"scope": "whole", "answer": "a" * 200_001}
        )
    assert error_of(long)["param"] == "answer"


async def test_a_failing_aligner_is_an_http_error() -> None:
    def fail(review: Review) -> Verdict:
        raise ReviewError("out of order")

    async with proxy(aligner=FunctionAligner(fail)) as p:
        refused = await p.client.post("/v1/align", json=ASK)
    assert refused.status_code == 502
    assert error_of(refused)["code"] == "review_failed"


async def test_in_a_batch_an_item_that_fails_has_its_error_at_its_place() -> None:
    def judge(review: Review) -> Verdict:
        if "fire" in review.sentence:
            raise ReviewError("out of order")
        return Verdict("She eats two.") if "eats" in review.sentence else Verdict()

    items = [ASK, {"question": "a"}, ASK | {"answer": "There is a fire."}, 3, ASK]
    async with proxy(aligner=FunctionAligner(judge)) as p:
        answer = await p.client.post("/v1/align", json={"items": items})
        metrics = (await p.client.get("/metrics")).text
    told = answer.json()
    assert answer.status_code == 200
    assert told["object"] == "list"
    assert [one["index"] for one in told["data"]] == [0, 1, 2, 3, 4]
    assert told["data"][0]["text"] == told["data"][4]["text"]
    assert told["data"][0]["changed"] is True
    errors = [told["data"][i]["error"] for i in (1, 2, 3)]
    assert [e["param"] for e in errors] == ["items[1].answer", None, "items[3]"]
    assert [e["code"] for e in errors] == [
        "missing_required_parameter", "review_failed", "invalid_value"
    ]  # fmt: skip
    assert 'errors_total{code="review_failed"} 1.0' in metrics


async def test_a_batch_is_bounded() -> None:
    async with proxy() as p:
        refused = await p.client.post("/v1/align", json={"items": [ASK] * 129})
        empty = await p.client.post("/v1/align", json={"items": []})
    assert refused.status_code == empty.status_code == 400
    assert error_of(refused)["param"] == error_of(empty)["param"] == "items"
    assert "128" in error_of(refused)["message"]


async def test_only_so_many_of_a_batch_are_reviewed_at_once() -> None:
    gate = asyncio.Event()
    aligner = FunctionAligner(gate=gate)
    items = [ASK | {"answer": "One."}] * (AT_ONCE + 3)
    async with proxy(aligner=aligner) as p:
        task = asyncio.create_task(p.client.post("/v1/align", json={"items": items}))
        async with asyncio.timeout(5):
            while aligner.running < AT_ONCE:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        (await p.client.get("/healthz")).raise_for_status()
        assert aligner.running == AT_ONCE
        gate.set()
        assert len((await task).json()["data"]) == len(items)


@pytest.mark.parametrize("batch", [True, False])
async def test_leaving_withdraws_the_reviews(batch: bool) -> None:
    aligner = FunctionAligner(gate=asyncio.Event())
    async with proxy(aligner=aligner) as p:
        body: Any = {"items": [ASK, ASK]} if batch else ASK
        task = asyncio.create_task(p.client.post("/v1/align", json=body))
        async with asyncio.timeout(5):
            while not aligner.running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            task.cancel()
            while aligner.running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert aligner.cancelled == len(aligner.asked)


async def test_a_routes_name_says_whose_policy_it_is() -> None:
    routes = [
        {"model": "strict", "to": [{"upstream": "main"}], "alignment": {"mode": "whole"}},
        {"model": "plain", "to": [{"upstream": "main"}]},
    ]
    async with proxy(routes=routes) as p:
        assert (await align(p.client, model="strict"))["scope"] == "whole"
        assert (await align(p.client, model="plain"))["scope"] == "sentence"
        assert (await align(p.client))["scope"] == "whole"  # the first route's
        unknown = await p.client.post("/v1/align", json=ASK | {"model": "nobody"})
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "model_not_found"
