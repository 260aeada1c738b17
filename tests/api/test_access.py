"""Keys and limits as clients meet them: every API, real HTTP."""

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest

from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import REPLY, Proxy, error_of, proxy

pytestmark = pytest.mark.anyio

KEY, OTHER = new_key(), new_key()
BEARER = {"authorization": f"Bearer {KEY}"}
THEIRS = {"authorization": f"Bearer {OTHER}"}
QUESTION = [{"role": "user", "content": "How many?"}]
# Each API, and a body that it takes.
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "scripted", "messages": QUESTION},
    "/v1/completions": {"model": "scripted", "prompt": "How many?"},
    "/v1/messages": {"model": "scripted", "messages": QUESTION, "max_tokens": 99},
    "/v1/responses": {"model": "scripted", "input": "How many?"},
    "/v1/align": {"model": "scripted", "question": "How many?", "answer": "One is fine."},
    "/v1/embeddings": {"model": "scripted", "input": "x"},
}
CLOSED = [
    *ASKED,
    "/v1/models",
    "/v1/models/scripted",
    "/v1/responses/resp_1",
    "/status",
    "/metrics",
]
CLOSED += ["/openapi.json", "/page.json", "/debug/sessions", "/no-such-path", "/v1"]


def entry(key: str = KEY, name: str = "team", **fields: Any) -> dict[str, Any]:
    return {"name": name, "hash": hash_of(key), **fields}


def keyed(*entries: dict[str, Any], **access: Any) -> dict[str, Any]:
    return {"access": {"keys": list(entries or (entry(),)), **access}}


async def ask(p: Proxy, path: str, headers: dict[str, str] | None, **fields: Any) -> httpx.Response:
    if path in ASKED:
        return await p.client.post(path, json=ASKED[path] | fields, headers=headers)
    return await p.client.get(path, headers=headers)


async def test_without_the_key_nothing_but_health_and_the_empty_page_is_answered() -> None:
    wrong = [None, THEIRS, {"authorization": f"Basic {KEY}"}, {"x-stream-aligner-key": KEY}]
    async with proxy(**keyed()) as p:
        for path in CLOSED:
            for headers in wrong:
                answer = await ask(p, path, headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["x-request-id"]
                assert OTHER not in answer.text
                assert answer.headers["content-type"] == "application/json"
        assert p.upstream.opened == 0
        for path in ("/healthz", "/readyz", "/"):
            assert (await p.client.get(path)).status_code == 200
        page = (await p.client.get("/")).text
        assert '{"sign_in":"authorization"}' in page
        metrics = (await p.client.get("/metrics", headers=BEARER)).text
    assert 'access_refusals_total{reason="no_key"}' in metrics
    assert 'access_refusals_total{reason="wrong_key"}' in metrics


async def test_a_key_that_has_expired_is_counted_as_such() -> None:
    async with proxy(**keyed(entry(expires="2020-01-01"), open_paths=["/metrics"])) as p:
        assert (await ask(p, "/v1/models", BEARER)).status_code == 401
        metrics = (await p.client.get("/metrics")).text
    assert 'access_refusals_total{reason="expired"} 1.0' in metrics


async def test_the_log_tells_who_was_refused_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="stream_aligner_proxy.access")
    async with proxy(**keyed(entry(models=[]))) as p:
        await ask(p, "/v1/chat/completions", None)
        await ask(p, "/v1/chat/completions", BEARER)
    told = [vars(record)["fields"] for record in caplog.records if record.msg == "answered"]
    assert [(one["status"], one["outcome"], one["key"]) for one in told] == [
        (401, "invalid_api_key", None),
        (404, "model_not_found", "team"),
    ]


async def test_errors_are_worded_as_the_paths_api_words_them() -> None:
    async with proxy(**keyed()) as p:
        openai = await ask(p, "/v1/chat/completions", THEIRS)
        anthropic = await ask(p, "/v1/messages", THEIRS)
    assert error_of(openai)["code"] == "invalid_api_key"
    assert anthropic.json()["error"]["type"] == "authentication_error"
    assert anthropic.headers["request-id"]


@pytest.mark.parametrize("path", ASKED)
async def test_the_key_opens_every_api_and_never_reaches_the_upstream(path: str) -> None:
    sent = BEARER | {"openai-organization": "org-1", "cookie": "a=b", "x-api-key": KEY}
    async with proxy(**keyed()) as p:
        for mode in ("stream", "off"):
            extension = {"stream_aligner": {"mode": mode}} if path == "/v1/completions" else {}
            answer = await ask(p, path, sent, **extension)
            assert answer.status_code in (200, 404), answer.text  # it has no embeddings
            assert answer.status_code == 200 or path == "/v1/embeddings" or mode == "off"
        for request in p.upstream.requests:
            told = str(request.headers)
            assert KEY not in told
            assert not {"authorization", "x-api-key", "cookie", "openai-organization"} & set(
                request.headers
            )


async def test_anthropics_clients_show_the_key_in_their_own_header() -> None:
    async with proxy(**keyed()) as p:
        assert (await ask(p, "/v1/messages", {"x-api-key": KEY})).status_code == 200
        assert (await ask(p, "/v1/models", {"x-api-key": KEY})).status_code == 401
        told = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
        assert (await ask(p, "/v1/models", told)).status_code == 200
    assert KEY not in str([request.headers for request in p.upstream.requests])


async def test_in_mode_both_the_proxys_key_stays_and_the_clients_own_goes_on() -> None:
    async with proxy(**keyed(mode="both")) as p:
        assert (await ask(p, "/v1/chat/completions", BEARER)).status_code == 401
        both = THEIRS | {"x-stream-aligner-key": KEY}
        assert (await ask(p, "/v1/chat/completions", both)).status_code == 200
    [request] = p.upstream.requests
    assert request.headers["authorization"] == f"Bearer {OTHER}"
    assert KEY not in str(request.headers)


async def test_in_mode_pass_through_a_key_must_come_and_goes_on() -> None:
    async with proxy(access={"mode": "pass-through"}) as p:
        assert (await ask(p, "/v1/chat/completions", None)).status_code == 401
        assert (await ask(p, "/v1/messages", None)).status_code == 401
        assert (await ask(p, "/v1/chat/completions", THEIRS)).status_code == 200
        assert (await ask(p, "/v1/messages", {"x-api-key": OTHER})).status_code == 200
        assert (await p.client.get("/status")).status_code == 200
    assert {r.headers["authorization"] for r in p.upstream.requests} == {f"Bearer {OTHER}"}


async def test_an_operator_may_open_paths() -> None:
    async with proxy(**keyed(open_paths=["/metrics"])) as p:
        assert (await p.client.get("/metrics")).status_code == 200
        assert (await p.client.get("/status")).status_code == 401
        told = (await p.client.get("/status", headers=BEARER)).json()["access"]
    assert told == {
        "mode": "keys",
        "keys": 1,
        "keys_error": None,
        "limits": {"store": "memory", "state": "ok"},
    }


@pytest.mark.parametrize("path", ASKED)
async def test_a_model_that_a_key_may_not_use_is_not_there(path: str) -> None:
    async with proxy(**keyed(entry(models=["other", "llama/*"]), entry(OTHER, "all"))) as p:
        refused = await ask(p, path, BEARER)
        if path == "/v1/align":
            assert refused.status_code == 404
        assert refused.status_code == 404, refused.text
        assert "scripted" in refused.text
        assert p.upstream.opened == 0
        assert (await p.client.get("/v1/models", headers=BEARER)).json()["data"] == []
        assert (await ask(p, "/v1/models/scripted", BEARER)).status_code == 404
        assert len((await p.client.get("/v1/models", headers=THEIRS)).json()["data"]) == 1


async def test_who_may_use_some_models_only_must_name_one() -> None:
    async with proxy(**keyed(entry(models=["scripted"]), entry(OTHER, "scraper", models=[]))) as p:
        nameless = await p.client.post("/v1/embeddings", json={"input": "x"}, headers=BEARER)
        assert error_of(nameless)["param"] == "model"
        item = {"question": "a", "answer": "One."}
        assert (await p.client.post("/v1/align", json=item, headers=BEARER)).status_code == 200
        assert (await p.client.post("/v1/align", json=item, headers=THEIRS)).status_code == 404
        assert (await p.client.get("/metrics", headers=THEIRS)).status_code == 200


ALIGNED = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]


@pytest.mark.parametrize("path", ALIGNED)
async def test_a_key_chooses_among_its_own_modes_only(path: str) -> None:
    async with proxy(**keyed(entry(modes=["whole", "stream"]))) as p:
        off = await ask(p, path, BEARER, stream_aligner={"mode": "off"})
        assert (off.status_code, "whole" in off.text) == (400, True), off.text
        assert p.upstream.opened == 0
        assert (await ask(p, path, BEARER)).headers["x-stream-aligner-mode"] == "stream"
        whole = await ask(p, path, BEARER, stream_aligner={"mode": "whole"})
        assert whole.headers["x-stream-aligner-mode"] == "whole"


async def test_where_the_routes_mode_is_not_the_keys_its_own_first_one_is_used() -> None:
    alignment = {"mode": "off", "allow_override": ["stream", "shadow"]}
    keys = keyed(entry(modes=["shadow", "stream"]), entry(OTHER, "b", modes=["whole"]))
    async with proxy(alignment=alignment, **keys) as p:
        answer = await ask(p, "/v1/chat/completions", BEARER)
        assert answer.headers["x-stream-aligner-mode"] == "shadow"
        refused = await ask(p, "/v1/chat/completions", THEIRS)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "mode_not_allowed")
        told = (await p.client.get("/page.json", headers=BEARER)).json()
        assert (told["mode"], told["modes"]) == ("shadow", ["stream", "shadow"])


async def test_json_passes_unreviewed_only_for_keys_that_may_go_without_review() -> None:
    json_wanted = {"response_format": {"type": "json_object"}}
    keys = keyed(entry(modes=["stream"]), entry(OTHER, "b"))
    async with proxy(Rule("{}"), **keys) as p:
        refused = await ask(p, "/v1/chat/completions", BEARER, **json_wanted)
        assert error_of(refused)["param"] == "response_format"
        assert p.upstream.opened == 0
        passed = await ask(p, "/v1/chat/completions", THEIRS, **json_wanted)
        assert passed.headers["x-stream-aligner-passthrough"] == "response_format"
        # What is passed on is not reviewed either.
        assert (await ask(p, "/v1/embeddings", BEARER)).status_code == 403


async def test_stored_responses_belong_to_the_keys_name() -> None:
    new = new_key()
    keys = keyed(entry(), entry(new), entry(OTHER, "b"))
    async with proxy(**keys) as p:
        id = (await ask(p, "/v1/responses", BEARER)).json()["id"]
        rotated = {"authorization": f"Bearer {new}"}
        assert (await p.client.get(f"/v1/responses/{id}", headers=rotated)).status_code == 200
        assert (await p.client.get(f"/v1/responses/{id}", headers=THEIRS)).status_code == 404


async def test_requests_are_limited_by_key_and_told_as_openai_tells_them() -> None:
    keys = keyed(entry(requests_per_minute=2), entry(OTHER, "b"))
    async with proxy(**keys, server={"cors": {"origins": ["https://app.example"]}}) as p:
        first = await ask(p, "/v1/chat/completions", BEARER)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        await ask(p, "/v1/messages", BEARER)
        refused = await ask(p, "/v1/chat/completions", BEARER | {"origin": "https://app.example"})
        assert refused.status_code == 429
        error = error_of(refused)
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        theirs = await ask(p, "/v1/messages", BEARER)
        assert theirs.json()["error"]["type"] == "rate_limit_error"
        free = await ask(p, "/v1/chat/completions", THEIRS)
        assert free.status_code == 200
        assert "x-ratelimit-limit-requests" not in free.headers
        assert (await p.client.get("/metrics", headers=BEARER)).status_code == 200
        metrics = (await p.client.get("/metrics", headers=BEARER)).text
    assert 'access_refusals_total{reason="limit_requests"} 2.0' in metrics
    assert 'errors_total{code="rate_limit_exceeded"} 2.0' in metrics


@pytest.mark.parametrize("mode", ["stream", "off"])
@pytest.mark.parametrize("stream", [True, False])
async def test_delivered_tokens_are_counted_whatever_the_mode(mode: str, stream: bool) -> None:
    async with proxy(**keyed(defaults={"tokens_per_minute": 1000})) as p:
        body = {"stream_aligner": {"mode": mode}}
        answer = await ask(p, "/v1/chat/completions", BEARER, stream=stream, **body)
        assert answer.status_code == 200
        after = await p.client.get("/v1/models", headers=BEARER)
        left = int(after.headers["x-ratelimit-remaining-tokens"])
        if not stream:
            assert abs(1000 - left - answer.json()["usage"]["total_tokens"]) <= 1
        assert left < 1000 - 10


async def test_tokens_that_are_used_up_refuse_the_next_request() -> None:
    async with proxy(**keyed(entry(tokens_per_minute=5))) as p:
        assert (await ask(p, "/v1/chat/completions", BEARER)).status_code == 200
        refused = await ask(p, "/v1/chat/completions", BEARER)
    assert (refused.status_code, error_of(refused)["type"]) == (429, "tokens")


@pytest.mark.parametrize("way", ["ends", "fails", "leaves"])
async def test_a_place_is_given_back_on_every_way_out(way: str) -> None:
    fault = Fault(status=500) if way == "fails" else Fault(hold=4)
    keys = keyed(entry(max_open=1, requests_per_minute=1000))
    async with proxy(Rule(REPLY, when="many", fault=fault), Rule("Fine."), **keys) as p:

        async def held() -> None:
            await ask(p, "/v1/chat/completions", BEARER, stream=True)

        task = asyncio.create_task(held())
        await p.upstream.until(lambda upstream: upstream.opened >= 1)
        if way != "fails":
            refused = await ask(p, "/v1/chat/completions", BEARER)
            assert "1 requests at once" in error_of(refused)["message"]
        if way == "leaves":
            task.cancel()
        p.upstream.release()
        with suppress(asyncio.CancelledError):
            await task
        short = [{"role": "user", "content": "few"}]
        answer = await ask(p, "/v1/chat/completions", BEARER, messages=short)
        async with asyncio.timeout(10):  # the server hears of a leaving a moment later
            while answer.status_code == 429:
                await asyncio.sleep(0.01)
                answer = await ask(p, "/v1/chat/completions", BEARER, messages=short)
    assert answer.status_code == 200


async def test_without_keys_addresses_can_be_limited() -> None:
    async with proxy(access={"per_address": {"requests_per_minute": 1}}) as p:
        assert (await ask(p, "/v1/chat/completions", None)).status_code == 200
        assert (await ask(p, "/v1/chat/completions", None)).status_code == 429
        assert (await p.client.get("/healthz")).status_code == 200


async def test_pages_of_named_origins_may_read_and_a_preflight_needs_no_key() -> None:
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with proxy(**keyed(), server={"cors": {"origins": ["https://app.example"]}}) as p:
        asked = await p.client.options("/v1/chat/completions", headers=preflight)
        assert asked.status_code == 200
        assert "authorization" in asked.headers["access-control-allow-headers"]
        sent = BEARER | {"origin": "https://app.example"}
        answer = await ask(p, "/v1/chat/completions", sent)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-stream-aligner-mode" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        other = await ask(p, "/v1/chat/completions", BEARER | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with proxy() as p:
        asked = await p.client.options("/v1/chat/completions", headers=preflight)
        assert asked.status_code == 405


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_a_conversation_has_no_more_messages_than_the_operator_allows(path: str) -> None:
    many = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    many += many[:1]
    field = "input" if path == "/v1/responses" else "messages"
    async with proxy(server={"max_messages": 4}) as p:
        refused = await ask(p, path, None, **{field: many})
        assert refused.status_code == 400
        assert "4 at most" in refused.text
        assert (await ask(p, path, None, **{field: many[2:]})).status_code == 200
