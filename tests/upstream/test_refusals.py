"""What a refusal of the upstream becomes, and what never leaks through it."""

from typing import Any

import orjson
import pytest

from stream_aligner_proxy.core.errors import UpstreamRejected
from stream_aligner_proxy.demo.script import Fault, Rule
from stream_aligner_proxy.upstream.rejections import MAX_MESSAGE_CHARS, Refusals
from tests.upstream.test_client import chat, collect, scripted


def refuse(status: int, body: Any, **options: Any) -> UpstreamRejected:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    headers = options.pop("headers", {"content-type": "application/json"})
    return Refusals("main", **options).from_status(status, headers, raw)


@pytest.mark.parametrize("status", [400, 404, 408, 409, 413, 422, 429, 500, 503])
def test_a_status_that_the_client_can_act_on_is_passed_on(status: int) -> None:
    said = {"message": "no", "type": "t", "code": "c", "param": "p"}
    error = refuse(status, {"error": said})
    assert (error.status, error.body()) == (status, {"error": said})


@pytest.mark.parametrize("status", [301, 405, 418])
def test_any_other_status_is_a_bad_gateway(status: int) -> None:
    assert refuse(status, {"error": "no"}).status == 502


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refused_credentials_are_the_clients_business_only_if_they_were_its_own(
    status: int,
) -> None:
    body = {"error": {"message": "bad key sk-proxy-secret"}}
    theirs = refuse(status, body, secrets=("sk-proxy-secret",))
    assert (theirs.status, theirs.message) == (status, "bad key [redacted]")
    ours = refuse(status, body, proxy_key=True)
    assert ours.status == 502
    assert ours.message == "upstream 'main' refused the proxy's credentials"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": "plain"}, "plain"),
        ({"object": "error", "message": "old vLLM", "code": 40001}, "old vLLM"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body", "n"], "msg": "must be 1"}]}, "body.n: must be 1"),
        ({"message": {"nested": 1}}, '{"nested":1}'),
        ([1], "upstream 'main' answered 500 (application/json, 3 bytes)"),
        ({"error": {"code": 1}}, "upstream 'main' answered 500 (application/json, 20 bytes)"),
        (b"", "upstream 'main' answered 500 (application/json, 0 bytes)"),
    ],
)
def test_messages_are_found_in_the_shapes_that_servers_use(body: Any, message: str) -> None:
    assert refuse(500, body).message == message


def test_pages_are_summarised_and_plain_text_is_quoted_in_part() -> None:
    html = refuse(502, b"<html><title>oops</title>", headers={"content-type": "text/html"})
    assert html.message == "upstream 'main' answered 502 (text/html, 25 bytes)"
    plain = refuse(500, b"Internal " * 100, headers={"content-type": "text/plain; charset=x"})
    assert plain.message.startswith("upstream 'main' answered 500 (text/plain, 900 bytes): Intern")
    assert len(plain.message) < 300


def test_long_messages_are_cut() -> None:
    assert len(refuse(400, {"error": {"message": "x" * 9000}}).message) == MAX_MESSAGE_CHARS


@pytest.mark.parametrize("code", ["\u00b2", "abc", 200, 9999, None, [1]])
def test_an_error_frame_with_an_odd_code_is_a_bad_gateway(code: Any) -> None:
    error = Refusals("main").from_frame({"error": {"message": "m", "code": code}})
    assert (error.status, error.message) == (502, "m")


@pytest.mark.anyio
async def test_a_refusal_keeps_the_headers_that_tell_when_to_try_again() -> None:
    headers = {"Retry-After": "3", "retry-after-ms": "2900", "x-request-id": "u-1", "server": "s"}
    fault = Fault(status=429, body={"error": {"message": "slow down"}}, headers=headers)
    async with scripted(Rule(fault=fault)) as (upstream, _):
        with pytest.raises(UpstreamRejected, match="slow down") as caught:
            await collect(upstream, chat())
    assert caught.value.status == 429
    assert caught.value.headers == {
        "retry-after": "3",
        "retry-after-ms": "2900",
        "x-request-id": "u-1",
    }


@pytest.mark.anyio
async def test_the_proxys_key_wins_and_what_belongs_to_the_clients_account_stays_behind() -> None:
    theirs = {
        "Authorization": "Bearer client-key",
        "OpenAI-Organization": "org",
        "Cookie": "c=1",
        "traceparent": "00-1",
    }
    async with scripted(api_key="proxy-key") as (upstream, app):
        await collect(upstream, chat(headers=theirs))
    sent = app.requests[0].headers
    assert sent["authorization"] == "Bearer proxy-key"
    assert sent["traceparent"] == "00-1"
    assert sent["x-request-id"] == "req-1"
    assert not {"openai-organization", "cookie"} & set(sent)
    async with scripted() as (upstream, app):
        await collect(upstream, chat(headers=theirs))
    sent = app.requests[0].headers
    assert sent["authorization"] == "Bearer client-key"
    assert sent["openai-organization"] == "org"
    assert "cookie" not in sent


@pytest.mark.anyio
@pytest.mark.parametrize("status", [401, 403])
async def test_no_key_shows_when_the_upstream_quotes_it(status: int) -> None:
    body = {"error": {"message": "Incorrect API key: proxy-key-123"}}
    rule = Rule(fault=Fault(status=status, body=body))
    async with scripted(rule, api_key="proxy-key-123") as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat(headers={"authorization": "Bearer client-key-1"}))
    assert caught.value.status == 502
    assert "proxy-key-123" not in str(caught.value) + repr(upstream)
    async with scripted(Rule(fault=Fault(status=400, body=body)), api_key="proxy-key-123") as (
        upstream,
        _,
    ):
        with pytest.raises(UpstreamRejected, match=r"Incorrect API key: \[redacted\]"):
            await collect(upstream, chat())


@pytest.mark.anyio
async def test_a_long_refusal_is_still_the_upstreams_own() -> None:
    body = {"error": {"message": "too long"}, "input": "x" * 200_000}
    async with scripted(Rule(fault=Fault(status=422, body=body))) as (upstream, _):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(upstream, chat())
    assert caught.value.status == 422
    assert len(caught.value.message) < 1000
