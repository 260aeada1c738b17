"""Errors as clients see them: status and shape before the first byte, one frame after it."""

from typing import Any

import pytest

from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Fault, Rule
from tests.api.proxy import QUESTION, REPLY, SHORT, error_of, parse_frames, proxy, text_of
from tests.fakes import FunctionAligner
from tests.servers import refused_address

pytestmark = pytest.mark.anyio


async def test_what_cannot_be_aligned_says_what_to_do_instead() -> None:
    async with proxy() as p:
        assert '"mode": "off"' in error_of(await p.post(logprobs=True))["message"]
        assert (await p.post(logprobs=True, stream_aligner={"mode": "off"})).status_code == 200
    async with proxy(alignment={"allow_override": False}) as p:
        assert "operator" in error_of(await p.post(logprobs=True))["message"]


async def test_json_output_is_refused_where_the_reviewing_must_hold() -> None:
    async with proxy(alignment={"structured_output": "refuse", "allow_override": False}) as p:
        refused = await p.post(response_format={"type": "json_object"})
        assert (await p.post(response_format={"type": "text"})).status_code == 200
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "response_format"


async def test_a_mode_the_operator_does_not_allow_is_refused() -> None:
    async with proxy(alignment={"mode": "stream", "allow_override": ["whole"]}) as p:
        refused = await p.post(stream_aligner={"mode": "off"})
        assert refused.status_code == 400
        assert error_of(refused)["code"] == "mode_not_allowed"
        assert "stream, whole" in error_of(refused)["message"]
        for mode in ("stream", "whole"):
            assert (await p.post(stream_aligner={"mode": mode})).status_code == 200


async def test_a_mode_the_aligner_cannot_work_in_is_refused() -> None:
    aligner = FunctionAligner()
    aligner.scopes = frozenset(("sentence",))
    async with proxy(aligner=aligner) as p:
        refused = await p.post(stream_aligner={"mode": "whole"})
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "mode_not_available"


async def test_an_unknown_model_is_a_404() -> None:
    async with proxy() as p:
        response = await p.post(model="nobody")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


async def test_a_body_that_is_too_large_is_a_413_whether_its_length_is_told_or_not() -> None:
    async def pieces() -> Any:
        for _ in range(4):
            yield b" " * 1000

    async with proxy(server={"max_body_bytes": 2048}) as p:
        told = await p.client.post("/v1/chat/completions", content=b" " * 4000)
        untold = await p.client.post("/v1/chat/completions", content=pieces())
        assert (await p.post()).status_code == 200
    assert told.status_code == untold.status_code == 413
    assert error_of(told)["code"] == "request_too_large"


async def test_unknown_paths_and_methods_answer_in_the_same_shape() -> None:
    async with proxy() as p:
        missing = await p.client.get("/v1/nothing")
        wrong = await p.client.get("/v1/chat/completions")
    assert missing.status_code == 404
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(missing)["type"] == error_of(wrong)["type"] == "invalid_request_error"


async def test_the_content_type_does_not_matter() -> None:
    async with proxy() as p:
        response = await p.post(headers={"content-type": "text/plain"})
    assert response.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_a_refusal_of_the_upstream_is_an_http_error(stream: bool, mode: str) -> None:
    body = {"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limited"}}
    fault = Fault(status=429, body=body, headers={"retry-after": "7", "x-request-id": "theirs"})
    async with proxy(Rule(REPLY, fault=fault)) as p:
        response = await p.post(stream=stream, stream_aligner={"mode": mode})
    assert response.status_code == 429
    assert error_of(response)["message"] == "slow down"
    assert response.headers["retry-after"] == "7"
    assert response.headers["x-request-id"] != "theirs"
    assert response.headers["x-upstream-request-id"] == "theirs"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
async def test_an_upstream_that_is_down_is_a_502(stream: bool, mode: str) -> None:
    gone = {"name": "main", "base_url": f"{refused_address()}/v1", "dialect": "vllm"}
    async with proxy(upstreams=[gone]) as p:
        response = await p.post(stream=stream, stream_aligner={"mode": mode})
        assert (await p.client.get("/readyz")).status_code == 503
        assert (await p.client.get("/v1/models")).status_code == 502
    assert response.status_code == 502
    assert error_of(response)["code"] == "upstream_unreachable"


@pytest.mark.parametrize("mode", ["stream", "off"])
async def test_an_upstream_that_never_answers_is_a_504(mode: str) -> None:
    silent = Rule(REPLY, fault=Fault(stall="headers"))
    async with proxy(silent, upstream={"timeouts": SHORT}) as p:
        response = await p.post(stream=True, stream_aligner={"mode": mode})
        await p.upstream.until(lambda upstream: upstream.running == 0)
    assert response.status_code == 504
    assert error_of(response)["code"] == "upstream_timeout"


def check_broken(frames: list[Any], code: str) -> None:
    assert frames[-1] == "[DONE]"
    assert frames[-2]["error"]["code"] == code
    assert [f for f in frames if f != "[DONE]" and "error" in f] == [frames[-2]]
    finishes = [c["finish_reason"] for f in frames[:-2] for c in f["choices"]]
    assert not any(finishes)


@pytest.mark.parametrize("mode", ["stream", "shadow", "off"])
async def test_a_reset_in_the_middle_is_one_error_frame_and_a_valid_end(mode: str) -> None:
    async with proxy(Rule(REPLY, fault=Fault(reset=8)), alignment={"max_resumes": 0}) as p:
        frames = await p.frames(stream_aligner={"mode": mode})
        whole = await p.post(stream_aligner={"mode": mode})
    assert REPLY.startswith(text_of(frames[:-2]))
    assert frames[-1] == "[DONE]"
    assert "error" in frames[-2]
    if mode == "stream":
        assert text_of(frames[:-2]) == "Anna has 3 apples. She eats one."
        assert whole.status_code == 502  # nothing was sent yet: an HTTP error


async def test_malformed_events_are_one_error_frame() -> None:
    async with proxy(Rule(REPLY, fault=Fault(garbage_after=8)), alignment={"max_resumes": 0}) as p:
        frames = await p.frames()
    check_broken(frames, "upstream_garbled")


async def test_a_reply_goes_on_after_its_upstream_was_cut_off() -> None:
    rest = Rule(" So 2 are left.", after=r"She eats one\.$")
    async with proxy(rest, Rule(REPLY, fault=Fault(reset=8))) as p:
        frames = await p.frames()
        whole = await p.post()
    assert text_of(frames[:-1]) == whole.json()["choices"][0]["message"]["content"] == REPLY
    assert not [f for f in frames if f != "[DONE]" and "error" in f]
    assert whole.json()["stream_aligner"]["cost"]["resumes"] == 1


def failing_on(word: str, error: Exception) -> FunctionAligner:
    def judge(review: Review) -> Verdict:
        if word in review.sentence:
            raise error
        return Verdict()

    return FunctionAligner(judge)


@pytest.mark.parametrize("error", [ReviewError("no verdict"), ValueError("secret sentence")])
async def test_a_failed_review_ends_the_stream_before_the_unreviewed_text(error: Exception) -> None:
    async with proxy(aligner=failing_on("eats", error)) as p:
        response = await p.post(stream=True)
        whole = await p.post()
    frames = parse_frames(response.text)
    assert text_of(frames[:-2]) == "Anna has 3 apples."
    check_broken(frames, "review_failed")
    assert "secret" not in response.text
    assert whole.status_code == 502
    assert error_of(whole)["type"] == "aligner_error"


async def test_a_failed_review_before_the_first_text_is_an_http_error() -> None:
    async with proxy(aligner=failing_on("Anna", ReviewError("no verdict"))) as p:
        response = await p.post(stream=True)
    assert response.status_code == 502
    assert error_of(response)["code"] == "review_failed"


async def test_failing_open_delivers_and_says_so() -> None:
    aligner = failing_on("eats", ReviewError("no verdict"))
    async with proxy(aligner=aligner, alignment={"fail_open": True}) as p:
        frames = await p.frames(stream_aligner={"provenance": True})
        metrics = (await p.client.get("/metrics")).text
    assert text_of(frames) == REPLY
    sentences = [f["stream_aligner"]["sentence"] for f in frames[1:-2]]
    assert [s["verdict"] for s in sentences] == ["keep", "unreviewed", "keep"]
    assert sentences[1]["error"]
    assert 'sentences_total{verdict="unreviewed"} 1.0' in metrics


async def test_a_defect_of_the_proxy_is_a_500_without_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy() as p:
        monkeypatch.setattr("stream_aligner_proxy.session.AlignmentLoop.start", lambda self: 1 / 0)
        response = await p.post(stream=True)
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "division" not in response.text
    assert any(record.exc_info for record in caplog.records)


async def test_secrets_and_content_stay_out_of_logs_and_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", logger="stream_aligner_proxy")
    fault = Fault(status=401, body={"error": {"message": "bad key sk-very-secret-key"}})
    async with proxy(Rule(REPLY, fault=fault)) as p:
        response = await p.post(
            headers={"authorization": "Bearer sk-very-secret-key"},
            messages=[{"role": "user", "content": "a private question"}],
        )
    assert response.status_code == 401
    assert "sk-very-secret-key" not in response.text
    assert "sk-very-secret-key" not in caplog.text
    assert "private" not in caplog.text
    # What the operator needs to know is there.
    assert "UpstreamRejected of upstream 'main' 401" in caplog.text


@pytest.mark.parametrize(("status", "level"), [(400, "INFO"), (403, "WARNING")])
async def test_what_the_upstream_refuses_for_the_requests_sake_is_no_warning(
    caplog: pytest.LogCaptureFixture, status: int, level: str
) -> None:
    caplog.set_level("INFO", logger="stream_aligner_proxy")
    async with proxy(Rule(REPLY, fault=Fault(status=status))) as p:
        await p.post()
        told = (await p.client.get("/status")).json()["upstreams"][0]["last_error"]
    [record] = [one for one in caplog.records if "UpstreamRejected" in one.getMessage()]
    assert record.levelname == level
    assert told == (None if level == "INFO" else "refused")


async def test_a_clients_mistakes_are_counted_by_kind() -> None:
    async with proxy() as p:
        await p.post(model=3)
        text = (await p.client.get("/metrics")).text
    assert 'stream_aligner_errors_total{code="invalid_value"} 1.0' in text


async def test_the_proxys_own_key_is_sent_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="stream_aligner_proxy")
    key = "sk-of-the-operator"
    fault = Fault(status=401, body={"error": {"message": f"bad key {key}"}})
    rules = (Rule(REPLY, when="refuse", fault=fault), Rule(REPLY))
    async with proxy(*rules, upstream={"api_key": key}) as p:
        told = [await p.post(headers={"authorization": "Bearer theirs"})]
        assert p.upstream.requests[0].headers["authorization"] == f"Bearer {key}"
        told.append(await p.post(messages=[{"role": "user", "content": "refuse"}]))
        for path in ("/", "/openapi.json", "/metrics", "/readyz", "/v1/models"):
            told.append(await p.client.get(path))
    assert told[1].status_code == 502
    assert not any(key in response.text for response in told)
    assert key not in caplog.text


async def test_the_question_survives_untouched() -> None:
    async with proxy() as p:
        await p.post()
        assert p.upstream.requests[0].body["messages"] == QUESTION
