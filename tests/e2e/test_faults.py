"""Bad input and bad upstreams: each a clear error, nothing unreviewed, nothing leaked."""

import json
import time

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "hello"}]
RULES = [{"find": "Bad", "replace": "Good"}]


@pytest.fixture
def post():
    with httpx.Client(trust_env=False, timeout=30) as client:

        def send(url: str, body=None, *, content: bytes | None = None, **fields):
            if content is None:
                default = {"model": "scripted", "messages": MESSAGES}
                content = json.dumps(body if body is not None else {**default, **fields}).encode()
            headers = {"content-type": "application/json", "authorization": "Bearer sk-client"}
            return client.post(f"{url}/chat/completions", content=content, headers=headers)

        yield send


def assert_error(response: httpx.Response, status: int, param: str | None = None) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "scripted"}, "messages"),
        ({"model": "scripted", "messages": []}, "messages"),
        ({"model": "scripted", "messages": "hello"}, "messages"),
        ({"model": "scripted", "messages": [1]}, "messages[0]"),
        ({"model": "scripted", "messages": [{"content": "x"}]}, "messages[0].role"),
        ({"model": "scripted", "messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": MESSAGES}, "model"),
        ({"model": 3, "messages": MESSAGES}, "model"),
        ({"model": "scripted", "messages": MESSAGES, "stream": "yes"}, "stream"),
        ({"model": "scripted", "messages": MESSAGES, "max_tokens": "many"}, "max_tokens"),
        ({"model": "scripted", "messages": MESSAGES, "n": 0}, "n"),
        ({"model": "scripted", "messages": MESSAGES, "logprobs": True}, "logprobs"),
        (
            {"model": "scripted", "messages": MESSAGES, "stream_aligner": {"mode": "loud"}},
            "stream_aligner.mode",
        ),
        (
            {"model": "scripted", "messages": MESSAGES, "stream_aligner": {"volume": 1}},
            "stream_aligner.volume",
        ),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_field(start, post, body, param):
    stack = start(script={})
    assert_error(post(stack.url, body), 400, param)
    assert stack.upstream.opened == 0


@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\xfe", b'"text"'])
def test_a_body_that_is_no_json_object_is_a_400(start, post, content):
    assert_error(post(start(script={}).url, content=content), 400)


def test_paths_and_methods_that_do_not_exist_answer_in_the_same_shape(start):
    url = start(script={}).url
    with httpx.Client(trust_env=False) as client:
        assert_error(client.get(f"{url}/nothing"), 404)
        assert_error(client.get(f"{url}/chat/completions"), 405)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
@pytest.mark.parametrize(
    "refusal",
    [
        ({"status": 401, "body": {"error": {"message": "bad key"}}}, 401),
        ({"status": 429, "headers": {"retry-after": "7"}, "body": "slow down"}, 429),
        ({"status": 500, "body": "<html>oops</html>"}, 500),
        ({"stall": "headers"}, 504),
    ],
)
def test_an_upstream_that_refuses_or_stalls_is_an_http_error(start, post, refusal, mode, stream):
    fault, status = refusal
    stack = start(script={"rules": [{"fault": fault}]}, timeouts={"first_byte": 0.5}, mode=mode)
    response = post(stack.url, stream=stream)
    assert_error(response, status)
    assert response.headers.get("retry-after") == fault.get("headers", {}).get("retry-after")
    assert "sk-client" not in response.text


def test_an_upstream_that_refuses_the_proxys_own_key_is_not_the_clients_fault(start, post):
    fault = {"status": 401, "body": {"error": {"message": "bad key sk-operator"}}}
    stack = start(script={"rules": [{"fault": fault}]}, api_key="sk-operator")
    response = post(stack.url)
    assert_error(response, 502)
    assert "sk-operator" not in response.text
    sent = stack.upstream.requests[0].headers
    assert sent["authorization"] == "Bearer sk-operator"


def test_an_upstream_that_is_down_is_a_502_and_the_proxy_says_so_in_readyz(tmp_path, post):
    from stream_aligner_proxy.app import create_app
    from stream_aligner_proxy.settings import build
    from tests.servers import serve_in_thread

    rules = tmp_path / "rules.yaml"
    rules.write_text("[]")
    upstream = {"name": "m", "base_url": "http://127.0.0.1:9/v1", "dialect": "vllm"}
    aligner = {"backend": "rules", "path": str(rules)}
    settings = build({"upstreams": [upstream], "aligner": aligner}, environ={})
    with serve_in_thread(create_app(settings)) as url:
        error = assert_error(post(f"{url}/v1"), 502)
        assert error["code"] == "upstream_unreachable"
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 503
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200


def frames_of(response: httpx.Response) -> list[dict]:
    """The events of a stream, which must be complete and well formed to the last byte."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content.endswith(b"\n\n")
    events = response.text.split("\n\n")[:-1]
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


MIDWAY = [
    pytest.param({"reset": 7}, id="reset"),
    pytest.param({"stall": 7}, id="stall"),
    pytest.param({"garbage_after": 7}, id="bad-json"),
    pytest.param({"garbage_after": 7, "garbage": "data: [1, 2]\n\n"}, id="no-object"),
    pytest.param({"error_after": 7}, id="error-frame"),
    pytest.param({"finish": False, "done": False}, id="no-end"),
]


@pytest.mark.parametrize("fault", MIDWAY)
def test_a_failure_in_the_middle_keeps_what_was_reviewed_and_ends_with_one_error_frame(
    start, post, fault
):
    script = {"rules": [{"reply": "Bad one here. Two is fine. Bad three", "fault": fault}]}
    stack = start(script=script, rules=RULES, dialect="openai", timeouts={"between_chunks": 0.5})
    frames = frames_of(post(stack.url, stream=True))
    text = "".join(
        frame["choices"][0]["delta"].get("content") or "" for frame in frames if "choices" in frame
    )
    assert text == "Good one here. Two is fine."
    assert [frame for frame in frames if "error" in frame] == [frames[-1]]
    assert "Bad" not in text
    deadline = time.monotonic() + 1
    while stack.upstream.running and time.monotonic() < deadline:
        time.sleep(0.01)  # it hears of the closed connection in its own thread
    assert stack.upstream.running == 0


@pytest.mark.parametrize("fault", MIDWAY[:2])
def test_passing_through_a_failing_stream_still_ends_validly(start, post, fault):
    script = {"rules": [{"reply": "One two three. Four five six. Seven eight", "fault": fault}]}
    stack = start(script=script, mode="off", timeouts={"between_chunks": 0.5})
    frames = frames_of(post(stack.url, stream=True))
    assert "error" in frames[-1]


@pytest.mark.parametrize("fault", MIDWAY)
def test_the_same_failure_is_an_http_error_for_a_client_that_does_not_stream(start, post, fault):
    script = {"rules": [{"reply": "Bad one here. Two is fine. Bad three", "fault": fault}]}
    stack = start(script=script, rules=RULES, dialect="openai", timeouts={"between_chunks": 0.5})
    response = post(stack.url)
    assert response.status_code in (502, 504)
    assert "Bad" not in response.text


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_line_ending_the_standard_allows_is_read(start, post, newline):
    script = {"rules": [{"reply": "Bad one. Two.", "fault": {"newline": newline}}]}
    stack = start(script=script, rules=RULES, dialect="openai")
    reply = post(stack.url).json()
    assert reply["choices"][0]["message"]["content"] == "Good one. Two."


def test_the_metrics_count_errors_and_never_show_a_key_or_text(start, post):
    stack = start(script={"rules": [{"reply": "Bad secret-text. Two."}]}, rules=RULES)
    post(stack.url)
    post(stack.url, {"model": "scripted"})
    metrics = httpx.get(stack.url.removesuffix("/v1") + "/metrics", trust_env=False).text
    assert 'verdict="replace"' in metrics
    assert "sk-client" not in metrics
    assert "secret-text" not in metrics
