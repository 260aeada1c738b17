"""Text completions: prompts are written on where that is possible, and aligned either way."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_aligner_proxy.api.faces.completions import TextChunks, TextGatherer
from stream_aligner_proxy.core.records import (
    Committed,
    Cost,
    Delivery,
    Finished,
    Mode,
    Review,
    Usage,
    Verdict,
)
from stream_aligner_proxy.demo.script import Rule, tokens
from tests.api.prompting import prompted
from tests.api.proxy import error_of, parse_frames, proxy, replacing
from tests.api.test_frames import plan
from tests.api.test_native import proxied
from tests.fakes import FunctionAligner
from tests.upstream.test_native import MODELS

PROMPT = "Question: how many?\nAnswer:"
REPLY = " Anna has 3 apples. She eats one. So 2 are left."
OTHER = "Once upon a time"
TALE = " there was a bear. It slept."
REPLIES = {PROMPT: REPLY, OTHER: TALE}
MODES = ("stream", "whole", "shadow", "off")


async def post(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": "scripted", "prompt": PROMPT, "max_tokens": 100, **fields}
    return await client.post("/v1/completions", json=body)


async def completed(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await post(client, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def joined(frames: list[Any]) -> dict[int, str]:
    """The texts of a stream's choices, whose shape is checked."""
    assert frames[-1] == "[DONE]"
    texts: dict[int, str] = {}
    ended: set[int] = set()
    for frame in frames[:-1]:
        assert frame["object"] == "text_completion"
        for choice in frame["choices"]:
            assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
            assert choice["index"] not in ended
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                ended.add(choice["index"])
    assert ended == set(texts)
    return texts


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_streamed_and_whole_answers_are_the_upstreams_own(mode: str) -> None:
    asked: Any = {"stream_aligner": {"mode": mode}}
    async with prompted(REPLIES) as (client, _):
        whole = await completed(client, **asked)
        stream = await post(client, stream=True, stream_options={"include_usage": True}, **asked)
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"] == REPLY
    assert whole["choices"][0]["finish_reason"] == "stop"
    counts = len(tokens(PROMPT)), len(tokens(REPLY))
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == counts
    frames = parse_frames(stream.text)
    assert frames[-2]["choices"] == []
    assert frames[-2]["usage"] == whole["usage"]
    assert "".join(c["text"] for f in frames[:-2] for c in f["choices"]) == REPLY
    assert stream.headers["x-stream-aligner-mode"] == mode


@pytest.mark.anyio
@pytest.mark.parametrize("dialect", ["vllm", "llamacpp", "generic"])
async def test_a_corrected_sentence_becomes_part_of_the_prompt(dialect: str) -> None:
    asked: list[Review] = []

    def judge(review: Review) -> Verdict:
        asked.append(review)
        return Verdict("She eats two.") if "eats one" in review.sentence else Verdict()

    upstream = {"dialect": dialect}
    async with prompted(REPLIES, FunctionAligner(judge), upstream=upstream) as (client, server):
        answer = await post(client, temperature=0, top_k=5)
        whole = answer.json()
        frames = parse_frames((await post(client, stream=True)).text)
    text = " Anna has 3 apples. She eats two. So 2 are left."
    assert whole["choices"][0]["text"] == text
    assert joined(frames) == {0: text}
    assert whole["stream_aligner"]["continuation"] == "prompt"
    assert whole["stream_aligner"]["cost"]["branches"] == 2
    first, second = server.bodies[:2]
    assert first["prompt"] == PROMPT
    assert second["prompt"] == PROMPT + " Anna has 3 apples. She eats two."
    assert second["max_tokens"] < first["max_tokens"] == 100
    assert (first["top_k"], second["top_k"]) == (5, 5)
    assert all("messages" not in body for body in server.bodies)
    assert asked[0].conversation[0].text == PROMPT
    assert answer.headers["x-stream-aligner-prompt"] == "completed"
    assert answer.headers["x-stream-aligner-continuation"] == "prompt"


@pytest.mark.anyio
@pytest.mark.parametrize("dialect", ["openai", "generic"])
async def test_an_upstream_that_only_chats_is_asked_the_prompt(dialect: str) -> None:
    aligner = replacing(eats="She eats two.")
    upstream = {"dialect": dialect}
    async with proxy(Rule(REPLY), aligner=aligner, upstream=upstream) as p:
        answers = [await post(p.client, best_of=1, logprobs=None) for _ in range(2)]
        frames = parse_frames((await post(p.client, stream=True)).text)
    for answer in answers:
        assert answer.json()["choices"][0]["text"].startswith(" Anna has 3 apples. She eats two.")
        assert answer.headers["x-stream-aligner-prompt"] == "asked"
    assert joined(frames)[0] == answers[1].json()["choices"][0]["text"]
    body = p.upstream.requests[0].body
    assert body["messages"] == [{"role": "user", "content": PROMPT}]
    assert not {"prompt", "best_of", "logprobs"} & set(body)


@pytest.mark.anyio
async def test_a_native_upstream_is_asked_the_prompt_in_every_mode() -> None:
    async with proxied("anthropic") as (client, _):
        for mode in ("stream", "off"):
            extra: Any = {"stream_aligner": {"mode": mode}}
            answer = await client.completions.create(
                model=MODELS["anthropic"], prompt="How many?", max_tokens=100, extra_body=extra
            )
            assert answer.choices[0].text
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            await client.completions.create(
                model=MODELS["anthropic"], prompt="a", logprobs=1, extra_body=extra
            )


@pytest.mark.anyio
async def test_every_prompt_gets_its_choices_in_order() -> None:
    aligner = replacing(slept="It danced.")
    asked: Any = {"prompt": [PROMPT, OTHER], "n": 2, "echo": True, "seed": 7}
    async with prompted(REPLIES, aligner) as (client, server):
        whole = await completed(client, **asked)
        sent = list(server.bodies)
        stream = await post(client, stream=True, **asked)
    tale = OTHER + " there was a bear. It danced."
    texts = [PROMPT + REPLY, PROMPT + REPLY, tale, tale]
    assert [choice["text"] for choice in whole["choices"]] == texts
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert joined(parse_frames(stream.text)) == dict(enumerate(texts))
    seeds = {(body["prompt"], body["seed"]) for body in sent}
    assert {(PROMPT, 7), (PROMPT, 8), (OTHER, 7), (OTHER, 8)} <= seeds
    assert all("echo" not in body and "n" not in body for body in sent)
    assert whole["usage"]["prompt_tokens"] == len(tokens(PROMPT)) + len(tokens(OTHER))
    assert len(whole["stream_aligner"]["choices"]) == 4


@pytest.mark.anyio
async def test_a_client_that_names_no_limit_gets_sixteen_tokens() -> None:
    async with prompted({PROMPT: " word" * 40}) as (client, server):
        answer = await completed(client, max_tokens=None)
    assert server.bodies[0]["max_tokens"] == 16
    assert answer["choices"][0] == {
        "index": 0, "text": " word" * 16, "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


@pytest.mark.anyio
async def test_stop_strings_hold_over_rewritten_text() -> None:
    async with prompted(REPLIES, replacing(eats="She eats two.")) as (client, _):
        answer = await completed(client, stop=["two"])
    assert answer["choices"][0]["text"] == " Anna has 3 apples. She eats "
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.anyio
async def test_the_history_of_sentences_comes_where_it_is_asked_for() -> None:
    asked: Any = {"stream_aligner": {"provenance": True}}
    async with prompted(REPLIES, replacing(eats="She eats two.")) as (client, _):
        whole = await completed(client, **asked)
        frames = parse_frames((await post(client, stream=True, **asked)).text)
    told = [s["text"] for s in whole["stream_aligner"]["sentences"]]
    assert "".join(told) == whole["choices"][0]["text"]
    found = [f["stream_aligner"] for f in frames[:-1] if "stream_aligner" in f]
    assert [one["sentence"]["text"] for one in found if "sentence" in one] == told


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": [1, 2, 3]}, "prompt", "unsupported_in_mode"),
        ({"prompt": [[1], [2]]}, "prompt", "unsupported_in_mode"),
        ({"logprobs": 0}, "logprobs", "unsupported_in_mode"),
        ({"suffix": "end"}, "suffix", "unsupported_in_mode"),
        ({"best_of": 3}, "best_of", "unsupported_in_mode"),
        ({"max_tokens": 0}, "max_tokens", "unsupported_in_mode"),
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": {"text": "a"}}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", "invalid_value"),
        ({"model": 3}, "model", "invalid_value"),
        ({"echo": "yes"}, "echo", "invalid_value"),
        ({"stop": [1]}, "stop", "invalid_value"),
        ({"stream_aligner": {"modus": "off"}}, "stream_aligner.modus", "unknown_parameter"),
    ],
)
async def test_what_cannot_be_aligned_is_a_400_that_names_the_field(
    fields: dict[str, Any], param: str, code: str
) -> None:
    async with prompted(REPLIES) as (client, server):
        refused = await post(client, **fields)
        assert refused.status_code == 400, refused.text
        assert (error_of(refused)["param"], error_of(refused)["code"]) == (param, code)
        assert not server.bodies


@pytest.mark.anyio
async def test_mode_off_relays_to_the_upstreams_own_completions() -> None:
    off: Any = {"stream_aligner": {"mode": "off"}}
    sent: Any = {"prompt": [[1, 2], [3]], "n": 2, "logprobs": 1, "best_of": 4, "suffix": "x"}
    async with prompted(REPLIES) as (client, server):
        whole = await completed(client, **sent, **off)
        stream = await post(client, stream=True, **sent, **off)
    assert whole["id"] == "cmpl-theirs"
    assert server.bodies[0] == {"model": "scripted", "max_tokens": 100, **sent}
    frames = parse_frames(stream.text)
    assert [f["choices"][0]["index"] for f in frames[:-1] if f["choices"][0]["finish_reason"]] == [
        0, 1, 2, 3
    ]  # fmt: skip


@pytest.mark.anyio
async def test_messages_are_no_part_of_a_text_completion() -> None:
    said = [{"role": "user", "content": "something else"}]
    async with prompted(REPLIES) as (client, server):
        answer = await completed(client, messages=said)
    assert answer["choices"][0]["text"] == REPLY
    assert server.bodies[0]["prompt"] == PROMPT
    assert "messages" not in server.bodies[0]


@pytest.mark.anyio
async def test_openais_client_reads_both() -> None:
    async with (
        prompted(REPLIES, replacing(eats="She eats two.")) as (client, _),
        openai.AsyncOpenAI(
            base_url=f"{str(client.base_url).rstrip('/')}/v1", api_key="none", max_retries=0
        ) as sdk,
    ):
        asked: Any = {"model": "scripted", "prompt": PROMPT, "max_tokens": 60}
        whole = await sdk.completions.create(**asked)
        stream = await sdk.completions.create(**asked, stream=True)
        said = "".join([chunk.choices[0].text async for chunk in stream])
    assert said == whole.choices[0].text
    assert "She eats two." in said


PIECES = st.lists(
    st.builds(
        lambda text, unit, part: Delivery(
            text,
            unit=Committed(0, text, text, "keep", 0) if unit else None,
            part={"reasoning_content": "hm"} if part else None,
        ),
        st.text(max_size=8),
        st.booleans(),
        st.booleans(),
    ),
    max_size=6,
)


@given(
    st.lists(st.tuples(PIECES, PIECES), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_streamed_and_whole_answers_say_the_same(
    replies: list[tuple[list[Delivery], list[Delivery]]],
    echo: bool,
    provenance: bool,
    usage: bool,
) -> None:
    prompts = [f"prompt {number}" for number in range(len(replies))]
    said = [deliveries for both in replies for deliveries in both]
    asked = plan(choices=len(said), provenance=provenance, include_usage=usage)
    finished = [
        Finished("stop", Usage(2, len(deliveries)), Cost(), Mode.STREAM, "none")
        for deliveries in said
    ]
    chunks, gatherer = (
        TextChunks(asked, prompts, echo=echo),
        TextGatherer(asked, prompts, echo=echo),
    )
    written = chunks.first()
    for choice, deliveries in enumerate(said):
        for delivery in deliveries:
            written += chunks.delivery(delivery, choice)
            gatherer.add(delivery, choice)
        written += chunks.finished(finished[choice], choice)
    frames = parse_frames((written + chunks.last(finished)).decode())
    whole = orjson.loads(gatherer.completion(finished))
    assert joined(frames) == {c["index"]: c["text"] for c in whole["choices"]}
    assert whole["usage"]["prompt_tokens"] == 2 * len(prompts)
    assert not usage or frames[-2]["usage"] == whole["usage"]
    if provenance:
        units = [f["stream_aligner"] for f in frames[:-1] if "stream_aligner" in f]
        streamed = [one["sentence"] for one in units if "sentence" in one]
        gathered = [s for one in whole["stream_aligner"]["choices"] for s in one["sentences"]]
        assert streamed == gathered
