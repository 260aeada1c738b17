"""What is wrong with a request is told before any upstream is asked."""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

from stream_aligner_proxy.app import create_app
from tests.api.proxy import error_of, settings
from tests.fakes import FunctionAligner
from tests.servers import refused_address, serve_in_thread

USER = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def door() -> Iterator[httpx.Client]:
    """A client of a proxy without an upstream: what is forwarded becomes a 502."""
    app = create_app(settings(refused_address()), aligner=FunctionAligner())
    with serve_in_thread(app) as address, httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff\xfe", None),
        (b'"text"', None),
        (b"[" * 5000, None),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "model"),
        (b'{"model": "", "messages": [{"role": "user", "content": "a"}]}', "model"),
        (b'{"model": 3, "messages": [{"role": "user", "content": "a"}]}', "model"),
        (b'{"model": "scripted"}', "messages"),
        (b'{"model": "scripted", "messages": []}', "messages"),
        (b'{"model": "scripted", "messages": "hello"}', "messages"),
        (b'{"model": "scripted", "messages": ["hello"]}', "messages[0]"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_field(
    door: httpx.Client, raw: bytes, param: str | None
) -> None:
    response = door.post("/v1/chat/completions", content=raw)
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "param", "meant"),
    [
        ({"model": "scripted", "messages": [USER], "Model": "other"}, "Model", "model"),
        (
            {"model": "scripted", "messages": [USER], "me\u017f\u017fages": []},
            "me\u017f\u017fages",
            "messages",
        ),
        (
            {"model": "scripted", "messages": [{**USER, "Content": "b"}]},
            "messages[0].Content",
            "content",
        ),
        (
            {
                "model": "scripted",
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a", "TEXT": "b"}]}
                ],
            },
            "messages[0].content[0].TEXT",
            "text",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["stream", "off"])
def test_a_field_that_some_servers_would_read_as_another_is_refused(
    door: httpx.Client, mode: str, body: dict[str, Any], param: str, meant: str
) -> None:
    headers = {"x-stream-aligner-mode": mode}
    response = door.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, "unknown_parameter")
    assert f"Did you mean '{meant}'?" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            "messages[0].content[0].type",
        ),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": "all"}, "tools"),
        ({"response_format": "json"}, "response_format"),
        ({"stream_aligner": "off"}, "stream_aligner"),
        ({"stream_aligner": {"mode": "loud"}}, "stream_aligner.mode"),
        ({"stream_aligner": {"provenance": "yes"}}, "stream_aligner.provenance"),
        ({"stream_aligner": {"strength": 1}}, "stream_aligner.strength"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    door: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "scripted", "messages": [USER]} | fields
    response = door.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_FIELDS = (
    *("stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs"),
    *("top_logprobs", "modalities", "tools", "response_format", "stream_aligner", "unknown"),
)
_message = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "tool", "x"]) | _json, "content": _json}
)
_bodies = st.fixed_dictionaries(
    {"model": st.just("scripted") | _json, "messages": st.lists(_message, max_size=3) | _json},
    optional=dict.fromkeys(_FIELDS, _json),
)


@fuzz(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=_bodies | st.binary(max_size=40))
@example(body=b"[" * 100_000)
@example(body=b'{"a":' * 300 + b"1" + b"}" * 300)
@example(body={"model": "m", "messages": [USER], "stop": 2**70, "stream": True})
@example(body={"model": "m", "messages": [{"role": "user", "content": "\x00<|keep|>"}]})
def test_no_body_is_a_500(door: httpx.Client, body: Any) -> None:
    raw = body if isinstance(body, bytes) else orjson_or_plain(body)
    response = door.post("/v1/chat/completions", content=raw)
    assert response.status_code in (400, 404, 502), response.text
    error_of(response)


def orjson_or_plain(body: Any) -> bytes:
    """JSON, also of numbers that orjson does not write."""
    try:
        return orjson.dumps(body)
    except TypeError:
        import json

        return json.dumps(body).encode("utf-8", "surrogatepass")


def test_nesting_deeper_than_can_be_written_back_is_a_400(door: httpx.Client) -> None:
    deep: Any = []
    for _ in range(240):
        deep = [deep]
    response = door.post(
        "/v1/chat/completions", json={"model": "m", "messages": [USER], "extra": deep}
    )
    assert response.status_code == 400
    assert "nested" in error_of(response)["message"]
