"""Every parameter of a chat request: what the upstream gets of it, or how it is refused."""

from typing import Any

import pytest

from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.demo.script import Chunking, Rule
from tests.api.proxy import REPLY, parse_frames, proxy, replacing
from tests.fakes import FunctionAligner

pytestmark = pytest.mark.anyio

ALIGNED = ("stream", "whole", "shadow")
# Sent with every branch of every choice, as they came.
FORWARDED: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.9,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "seed": 7,
    "user": "u-1",
    "safety_identifier": "s-1",
    "prompt_cache_key": "k-1",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "metadata": {"team": "a"},
    "service_tier": "flex",
    "store": False,
    "reasoning_effort": "low",
    "verbosity": "high",
    "web_search_options": {"search_context_size": "low"},
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "top_k": 20,
    "made_up": {"deep": [1, None]},
}
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
    "parallel_tool_calls": False,
}
FUNCTIONS: dict[str, Any] = {
    "functions": [{"name": "add", "parameters": {}}],
    "function_call": {"name": "add"},
}
REFUSED = (
    ("logprobs", True, ALIGNED),
    ("top_logprobs", 3, ALIGNED),
    ("modalities", ["text", "audio"], ALIGNED),
    ("moderation", {"model": "m"}, ALIGNED),
    ("store", True, ("stream", "whole")),
)
WRONG = (
    ("n", 0),
    ("n", 129),
    ("stop", 3),
    ("stream", "yes"),
    ("max_tokens", 0),
    ("max_completion_tokens", "many"),
    ("store", "yes"),
    ("modalities", "text"),
    ("response_format", "json"),
    ("stream_options", {"include_obfuscation": "yes"}),
)


@pytest.mark.parametrize("mode", ALIGNED)
async def test_what_is_forwarded_goes_out_with_every_branch_as_it_came(mode: str) -> None:
    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        response = await p.post(**FORWARDED, stream_aligner={"mode": mode})
        assert response.status_code == 200
        sent = [request.body for request in p.upstream.requests]
    assert len(sent) == (2 if mode == "stream" else 1)
    for body in sent:
        assert {name: body.get(name) for name in FORWARDED} == FORWARDED
        assert "stream_aligner" not in body


@pytest.mark.parametrize("asked", [TOOLS, FUNCTIONS])
@pytest.mark.parametrize("mode", ALIGNED)
async def test_tools_and_functions_go_out_as_they_came(mode: str, asked: dict[str, Any]) -> None:
    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        response = await p.post(**asked, stream_aligner={"mode": mode})
        [body] = [request.body for request in p.upstream.requests]
    assert response.status_code == 200
    assert {name: body.get(name) for name in asked} == asked
    if mode == "stream":
        assert response.headers["x-stream-aligner-continuation"] == "rewrite-only"
        assert "She eats two." in response.json()["choices"][0]["message"]["content"]


async def test_a_prediction_is_made_once() -> None:
    prediction = {"type": "content", "content": REPLY}
    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        await p.post(prediction=prediction)
        sent = [request.body.get("prediction") for request in p.upstream.requests]
    assert sent == [prediction, None]


async def test_the_proxy_asks_for_its_own_stream_and_choices() -> None:
    asked = {"stream_options": {"include_usage": False, "include_obfuscation": True}}
    async with proxy() as p:
        await p.post(**asked, n=2)
        sent = [request.body for request in p.upstream.requests]
    assert len(sent) == 2
    for body in sent:
        assert body["stream"] is True
        assert body["stream_options"]["include_usage"] is True
        assert "include_obfuscation" not in body["stream_options"]
        assert "n" not in body


@pytest.mark.parametrize(("name", "value", "modes"), REFUSED)
async def test_what_cannot_be_aligned_is_refused_by_name_and_passes_in_mode_off(
    name: str, value: Any, modes: tuple[str, ...]
) -> None:
    async with proxy() as p:
        for mode in Mode:
            response = await p.post(**{name: value}, stream_aligner={"mode": mode})
            if mode not in modes:
                assert response.status_code == 200
                assert p.upstream.requests[-1].body[name] == value
                continue
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, name)
            assert error["code"] == "unsupported_in_mode"
            assert "off" in error["message"]


@pytest.mark.parametrize(("name", "value"), WRONG)
async def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    async with proxy() as p:
        response = await p.post(**{name: value})
        assert p.upstream.requests == []
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].split(".")[0] == name
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("mode", ALIGNED)
async def test_the_tier_and_the_fingerprint_of_the_upstream_are_told(mode: str) -> None:
    asked = {"service_tier": "flex", "stream_aligner": {"mode": mode}}
    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        whole = (await p.post(**asked)).json()
        frames = await p.frames(**asked, stream_options={"include_usage": True})
    told = {"service_tier": "flex", "system_fingerprint": "fp_scripted"}
    for frame in (whole, *frames[-3:-1]):
        assert {name: frame.get(name) for name in told} == told


@pytest.mark.parametrize("usage", [True, False])
async def test_obfuscated_events_have_few_lengths_and_the_same_text(usage: bool) -> None:
    options = {"include_obfuscation": True, "include_usage": usage}
    async with proxy(Rule(REPLY * 9, chunk=Chunking("characters"))) as p:
        hidden = (await p.post(stream=True, stream_options=options)).text
        plain = (await p.post(stream=True)).text
    events = [event for event in hidden.split("\n\n") if "delta" in event]
    assert len({len(event.encode()) % 256 for event in events}) == 1
    frames = [frame for frame in parse_frames(hidden) if frame != "[DONE]"]
    assert all(frame["obfuscation"] for frame in frames if frame["choices"])
    assert len({frame["obfuscation"][:9] for frame in frames if frame["choices"]}) > 1
    assert "obfuscation" not in plain


async def test_sound_pictures_files_and_refusals_in_messages_go_out_as_they_came() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}},
    ]
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No, thanks."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "assistant", "content": None, "tool_calls": [call], "audio": {"id": "a"}},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
        {"role": "function", "content": "3", "name": "add"},
        {"role": "user", "content": "Well?"},
    ]
    aligner = FunctionAligner()
    async with proxy(aligner=aligner) as p:
        assert (await p.post(messages=messages)).status_code == 200
        assert p.upstream.requests[0].body["messages"] == messages
    turns = [turn.text for turn in aligner.asked[0].conversation]
    said = [
        "Be short.",
        "What is this?",
        "No, thanks.",
        "And now?",
        "Never.",
        "",
        "3",
        "3",
        "Well?",
    ]
    assert turns == said


@pytest.mark.parametrize("parts", [None, Chunking("characters", 3)])
async def test_a_legacy_function_call_is_told_after_the_text_and_joined(
    parts: Chunking | None,
) -> None:
    call = {"name": "add", "arguments": '{"a": 1, "b": [2, 3]}'}
    rule = Rule("Let me add.", function_call=call, parts=parts)
    async with proxy(rule) as p:
        frames = await p.frames(**FUNCTIONS)
        [choice] = (await p.post(**FUNCTIONS)).json()["choices"]
    assert choice["message"]["function_call"] == call
    assert choice["message"]["content"] == "Let me add."
    assert choice["finish_reason"] == "function_call"
    deltas = [frame["choices"][0]["delta"] for frame in frames[:-1]]
    at = [i for i, delta in enumerate(deltas) if "function_call" in delta]
    assert min(at) > max(i for i, delta in enumerate(deltas) if delta.get("content"))
    pieces = [deltas[i]["function_call"] for i in at]
    assert "".join(piece.get("arguments", "") for piece in pieces) == call["arguments"]
    assert "".join(piece.get("name", "") for piece in pieces) == "add"


async def test_a_refusal_is_told_in_its_own_field() -> None:
    rule = Rule("", refusal="I would rather not.", parts=Chunking("words"))
    aligner = FunctionAligner()
    async with proxy(rule, aligner=aligner) as p:
        frames = await p.frames()
        message = (await p.post()).json()["choices"][0]["message"]
        plain = (await p.post(stream_aligner={"mode": "off"})).json()["choices"][0]["message"]
    told = [f["choices"][0]["delta"].get("refusal") or "" for f in frames[:-1]]
    assert "".join(told) == message["refusal"] == plain["refusal"] == rule.refusal
    assert message["content"] is None
    assert aligner.asked == []
