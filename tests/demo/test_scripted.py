"""The scripted upstream does what its script says, and remembers what it was asked."""

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.demo.script import Chunking, Fault, Rule, Script, load, resume, tokens
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.servers import serve, serve_in_thread

REPLY = "One is 1. Two is 3. Three is 4."


@given(st.text(), st.sampled_from(["words", "characters", "tokens", "random"]), st.integers(1, 9))
def test_a_reply_is_cut_without_loss(text: str, by: str, size: int) -> None:
    assert "".join(Chunking(by, size).cut(text)) == text == "".join(tokens(text))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "prefix", "expected"),
    [
        (Rule(REPLY), "", REPLY),
        (Rule(REPLY), "One is 1. Tw", "o is 3. Three is 4."),
        (Rule(REPLY), "One is 1. Two is 2.", " Three is 4."),
        (Rule(REPLY), "Corrected", " Two is 3. Three is 4."),
        (Rule(REPLY), "A. B. C. D.", ""),
        (Rule(" So 3.", after="2\\.$"), "One is 1. Two is 2.", " So 3."),
    ],
)
def test_a_continuation_depends_on_the_prefix(rule: Rule, prefix: str, expected: str) -> None:
    assert resume(rule, prefix) == expected


def test_a_rule_with_after_answers_continuations_only() -> None:
    induced = Rule(" So 3.", after=r"is 2\.$")
    script = Script([induced, Rule(REPLY, when="(?i)count")])
    assert script.choose("Count!", "") is script.rules[1]
    assert script.choose("Count!", "One is 1. Two is 2.") is induced
    assert script.choose("else", "").reply == "else"


def test_a_script_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(
        "prefill: repeats\nchunk: {by: random, size: 5, seed: 2}\n"
        "rules: [{when: a, reply: b, fault: {status: 429}}]\n"
    )
    fault = Fault(status=429)
    expected = Script(
        [Rule("b", "a", fault=fault)], "scripted", "repeats", Chunking("random", 5, 2)
    )
    assert load(path) == expected


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[]", "script"),
        ("colour: red", r"script\.colour"),
        ("prefill: maybe", r"script\.prefill"),
        ("chunk: {by: lines}", r"script\.chunk\.by"),
        ("rules: [{when: '('}]", r"script\.rules\[0\]\.when"),
        ("rules: [{fault: {stat: 1}}]", r"script\.rules\[0\]\.fault\.stat"),
    ],
)
def test_a_wrong_script_is_refused_with_the_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=key):
        load(path)


@pytest.mark.anyio
async def test_limits_stops_and_rejected_prefills_are_honoured() -> None:
    app = ScriptedUpstream(Script([Rule(REPLY)], prefill="rejects"))
    messages = [{"role": "user", "content": "go"}]
    async with serve(app) as address, httpx.AsyncClient(trust_env=False) as http:
        url = f"{address}/v1/chat/completions"
        short = (await http.post(url, json={"messages": messages, "max_tokens": 2})).json()
        stop = (await http.post(url, json={"messages": messages, "stop": "Two"})).json()
        assistant = {"role": "assistant", "content": "One"}
        refused = await http.post(url, json={"messages": [*messages, assistant]})
        seen = (await http.get(f"{address}/_script/requests")).json()
    assert short["choices"][0]["message"]["content"] == "One is"
    assert short["choices"][0]["finish_reason"] == "length"
    assert stop["choices"][0]["message"]["content"] == "One is 1. "
    assert refused.status_code == 400
    assert [request["prefix"] for request in seen] == ["", "", "One"]
    assert (app.opened, app.closed) == (3, 3)


@pytest.mark.anyio
async def test_a_held_answer_goes_on_when_it_is_released() -> None:
    app = ScriptedUpstream(Script([Rule(REPLY, fault=Fault(hold=2))]))
    body = {"messages": [{"role": "user", "content": "go"}], "stream": True}
    async with (
        serve(app) as address,
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("POST", f"{address}/v1/chat/completions", json=body) as answer,
    ):
        await app.until(lambda a: a.requests[0].sent == "One is")
        app.release()
        assert "[DONE]" in (await answer.aread()).decode()
    assert app.requests[0].sent == REPLY


def test_it_can_be_served_from_a_thread_to_a_blocking_client() -> None:
    app = ScriptedUpstream(Script([Rule(REPLY)]))
    with serve_in_thread(app) as address:
        answer = httpx.get(f"{address}/v1/models", trust_env=False)
    assert answer.json()["data"][0]["id"] == "scripted"
