"""`POST /v1/chat/completions`: what a client gets, streamed and whole."""

from typing import Any

import pytest

from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Chunking, Rule
from tests.api.proxy import REPLY, extensions, parse_frames, proxy, replacing, text_of
from tests.fakes import FunctionAligner, TellingAligner

pytestmark = pytest.mark.anyio

WRONG = Rule("Anna has 4 apples. So 4 are left.")
CONTINUED = Rule(" So 3 are left.", after=r"3 apples\.$")


def counting_right() -> FunctionAligner:
    return replacing(**{"4 apples": "Anna has 3 apples."})


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


async def test_an_aligner_that_keeps_everything_changes_nothing() -> None:
    async with proxy() as p:
        frames = await p.frames(stream_options={"include_usage": True})
        plain = await p.frames(
            stream_options={"include_usage": True}, stream_aligner={"mode": "off"}
        )
    assert text_of(frames) == text_of(plain) == REPLY
    assert frames[-3]["choices"][0]["finish_reason"] == "stop"
    ours, theirs = frames[-2]["usage"], [f for f in plain if f != "[DONE]" and f.get("usage")][-1]
    assert ours == theirs["usage"]


async def test_a_corrected_sentence_is_delivered_and_the_upstream_continues_from_it() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        frames = await p.frames()
        assert p.upstream.requests[1].body["messages"][-1]["content"] == "Anna has 3 apples."
    assert text_of(frames) == "Anna has 3 apples. So 3 are left."


async def test_the_clients_stop_string_holds_over_rewritten_text() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        reply = (await p.post(stop=["3 app"])).json()
        none = await p.post(stop=[3])
        assert len(p.upstream.requests) == 1
    assert reply["choices"][0]["message"]["content"] == "Anna has "
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert none.status_code == 400
    assert none.json()["error"]["param"] == "stop"
    assert "a string or a list of strings" in none.json()["error"]["message"]


@pytest.mark.parametrize("field", ["include_stop_str_in_output", "no_stop_trim"])
async def test_a_client_that_wants_its_stop_string_gets_it(field: str) -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        reply = (await p.post(stop=["3 app"], **{field: True})).json()
        without = (await p.post(stop=["3 app"], **{field: False})).json()
    assert reply["choices"][0]["message"]["content"] == "Anna has 3 app"
    assert without["choices"][0]["message"]["content"] == "Anna has "


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
async def test_streamed_and_whole_replies_have_the_same_text(mode: str) -> None:
    rules = (CONTINUED, WRONG)
    async with proxy(*rules, aligner=counting_right()) as p:
        frames = await p.frames(stream_aligner={"mode": mode})
        whole = await p.post(stream_aligner={"mode": mode})
    assert whole.headers["x-stream-aligner-mode"] == mode
    assert whole.json()["choices"][0]["message"]["content"] == text_of(frames)
    assert whole.json()["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_begins_with_the_role_and_ends_with_finish_and_done() -> None:
    async with proxy() as p:
        frames = await p.frames()
    assert frames[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert frames[-1] == "[DONE]"
    chunks = frames[:-1]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert all("usage" not in chunk for chunk in chunks)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    for key in ("id", "created", "model"):
        assert len({chunk[key] for chunk in chunks}) == 1
    assert chunks[0]["model"] == "scripted"


async def test_each_committed_sentence_is_one_chunk() -> None:
    async with proxy(Rule(REPLY, chunk=Chunking("characters"))) as p:
        frames = await p.frames()
    texts = [f["choices"][0]["delta"].get("content") for f in frames[1:-2]]
    assert texts == ["Anna has 3 apples.", " She eats one.", " So 2 are left."]


async def test_usage_comes_last_but_one_and_only_when_asked_for() -> None:
    async with proxy() as p:
        frames = await p.frames(stream_options={"include_usage": True})
        assert "stream_options" not in p.upstream.requests[0].body or (
            p.upstream.requests[0].body["stream_options"]["include_usage"] is True
        )
    assert frames[-2]["choices"] == []
    usage = frames[-2]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert all(frame["usage"] is None for frame in frames[:-2])


async def test_provenance_tells_where_each_sentence_comes_from() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        asked = {"provenance": True}
        frames = await p.frames(stream_aligner=asked)
        whole = (await p.post(stream_aligner=asked)).json()
    sentences = extensions(frames, "sentence")
    assert [s["verdict"] for s in sentences] == ["replace", "keep"]
    first = sentences[0]
    assert first["original"] == "Anna has 4 apples."
    assert first["text"] == "Anna has 3 apples."
    assert (first["index"], first["branch"], first["end"]) == (0, 0, False)
    assert 0 <= first["review_ms"] <= first["waited_ms"]
    assert "".join(s["text"] for s in sentences) == text_of(frames)
    told = whole["stream_aligner"]
    assert [s["text"] for s in told["sentences"]] == [s["text"] for s in sentences]
    assert told["mode"] == "stream"
    assert told["continuation"] == "prefill"
    assert told["cost"]["corrections"] == 1


async def test_without_provenance_only_the_end_says_what_the_reply_cost() -> None:
    async with proxy() as p:
        frames = await p.frames()
        whole = (await p.post()).json()
        plain = (await p.post(stream_aligner={"mode": "off"})).json()
    assert extensions(frames, "sentence") == []
    assert extensions(frames, "cost") == [frames[-2]["stream_aligner"]["cost"]]
    assert "sentences" not in whole["stream_aligner"]
    assert "stream_aligner" not in plain


async def test_shadow_mode_delivers_the_original_and_tells_the_verdicts() -> None:
    async with proxy(WRONG, aligner=counting_right()) as p:
        frames = await p.frames(stream_aligner={"mode": "shadow", "provenance": True})
    assert text_of(frames) == WRONG.reply
    assert [s["verdict"] for s in extensions(frames, "sentence")] == ["replace", "keep"]
    assert all("delta" in choice for f in frames[:-1] for choice in f["choices"])


async def test_a_deleted_sentence_is_told_without_text() -> None:
    async with proxy(aligner=replacing(eats="")) as p:
        frames = await p.frames(stream_aligner={"provenance": True})
    assert text_of(frames) == "Anna has 3 apples. So 2 are left."
    assert [s["text"] for s in extensions(frames, "sentence")][1] == ""


async def test_an_end_verdict_ends_the_reply() -> None:
    aligner = FunctionAligner(lambda review: Verdict(None, end="eats" in review.sentence))
    async with proxy(aligner=aligner) as p:
        frames = await p.frames()
    assert text_of(frames) == "Anna has 3 apples. She eats one."
    assert frames[-2]["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_and_tool_calls_pass_in_order_and_are_joined_in_whole_replies() -> None:
    rule = Rule("Let me add. Here.", reasoning="Hmm. Well.", tool_calls=(CALL,))
    tools = [{"type": "function", "function": {"name": "add"}}]
    async with proxy(rule) as p:
        frames = await p.frames(tools=tools)
        message = (await p.post(tools=tools)).json()["choices"][0]["message"]
        finish = (await p.post(tools=tools)).json()["choices"][0]["finish_reason"]
    kinds = [next(iter(f["choices"][0]["delta"]), "end") for f in frames[:-1]]
    assert kinds.index("content") > max(i for i, k in enumerate(kinds) if k.startswith("reason"))
    assert kinds.index("tool_calls") > max(i for i, k in enumerate(kinds) if k == "content")
    assert message["content"] == "Let me add. Here."
    assert message.get("reasoning_content", message.get("reasoning")) == "Hmm. Well."
    assert message["tool_calls"] == [CALL]
    assert finish == "tool_calls"


async def test_json_output_passes_through_and_a_header_says_so() -> None:
    async with proxy(Rule('{"a": 1}'), aligner=replacing(a="no")) as p:
        whole = await p.post(response_format={"type": "json_object"})
        streamed = await p.post(stream=True, response_format={"type": "json_object"})
    assert whole.json()["choices"][0]["message"]["content"] == '{"a": 1}'
    for response in (whole, streamed):
        assert response.headers["x-stream-aligner-passthrough"] == "response_format"
        assert response.headers["x-stream-aligner-mode"] == "off"


async def test_the_upstream_gets_every_field_but_the_extension() -> None:
    fields = {"temperature": 0.3, "seed": 7, "made_up": {"deep": [1, None]}, "stop": ["x"]}
    async with proxy() as p:
        await p.post(stream_aligner={"mode": "stream"}, **fields)
        await p.post(stream_aligner={"mode": "off"}, **fields)
        for request in p.upstream.requests:
            assert "stream_aligner" not in request.body
            assert request.body | fields == request.body


async def test_the_token_limit_holds_across_branches() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        await p.post(max_completion_tokens=20)
        limits = [
            request.body.get("max_tokens", request.body.get("max_completion_tokens"))
            for request in p.upstream.requests
        ]
    assert limits[0] == 20
    assert limits[1] < 20


async def test_only_text_parts_reach_the_aligner() -> None:
    parts = [
        {"type": "text", "text": "How"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "many?"},
    ]
    aligner = FunctionAligner()
    async with proxy(aligner=aligner) as p:
        response = await p.post(messages=[{"role": "user", "content": parts}])
        assert p.upstream.requests[0].body["messages"][0]["content"] == parts
    assert response.status_code == 200
    assert aligner.asked[0].conversation[0].text == "How\nmany?"


async def test_a_continuation_reaches_the_upstream_under_an_id_of_its_own() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        await p.post(headers={"x-request-id": "mine"}, request_id="theirs", rid="theirs")
        asked = p.upstream.requests
    assert [request.headers["x-request-id"] for request in asked] == ["mine", "mine-1"]
    assert [request.body.get("request_id") for request in asked] == ["theirs", None]
    assert [request.body.get("rid") for request in asked] == ["theirs", None]


@pytest.mark.parametrize("mode", ["stream", "whole"])
async def test_text_is_streamed_while_its_verdict_is_still_being_written(mode: str) -> None:
    def judge(review: Review) -> Verdict:
        return Verdict(review.sentence.replace("4", "3")) if "4" in review.sentence else Verdict()

    async with proxy(CONTINUED, WRONG, aligner=TellingAligner(judge)) as p:
        frames = await p.frames(stream_aligner={"mode": mode, "provenance": True})
    assert text_of(frames) == "Anna has 3 apples. So 3 are left."
    told = [found["sentence"] for frame in frames if "sentence" in (found := of(frame))]
    assert "".join(sentence["text"] for sentence in told) == text_of(frames)
    assert len(told) == (2 if mode == "stream" else 1)
    pieces = [frame for frame in frames[:-1] if frame["choices"][0]["delta"].get("content")]
    assert len(pieces) > len(told)


def of(frame: Any) -> dict[str, Any]:
    return {} if frame == "[DONE]" else frame.get("stream_aligner", {})


async def test_the_request_id_comes_back_and_goes_on() -> None:
    async with proxy() as p:
        response = await p.post(headers={"x-request-id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        assert p.upstream.requests[0].headers["x-request-id"] == "mine-1"
        hostile = await p.post(headers={"x-request-id": "a b" * 100})
        assert hostile.headers["x-request-id"].startswith("req_")
        assert (await p.client.get("/nowhere")).headers["x-request-id"].startswith("req_")


async def test_mode_off_relays_the_events_of_the_upstream_unread() -> None:
    async with proxy(Rule(REPLY, chunk=Chunking("words"))) as p:
        response = await p.post(stream=True, stream_aligner={"mode": "off"})
        assert p.upstream.requests[0].body["stream"] is True
    frames = parse_frames(response.text)
    assert frames[0]["id"] == "chatcmpl-1"  # the upstream's own
    assert len([f for f in frames if f != "[DONE]" and text_of([f])]) == len(REPLY.split())
    assert response.headers["x-accel-buffering"] == "no"


async def test_several_choices_are_aligned_each_and_their_chunks_interleave() -> None:
    async with proxy(aligner=replacing(eats="She eats two.")) as p:
        frames = await p.frames(n=3, seed=7, stream_options={"include_usage": True})
        whole = (await p.post(n=3)).json()
        asked = [r.body["seed"] for r in p.upstream.requests if "seed" in r.body]
    assert {7, 8, 9} <= set(asked)
    texts = {0: "", 1: "", 2: ""}
    ends = []
    for frame in frames[:-1]:
        for choice in frame["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                ends.append(choice["index"])
    assert sorted(ends) == [0, 1, 2]
    assert len(set(texts.values())) == 1
    assert "She eats two." in texts[0]
    assert [choice["message"]["content"] for choice in whole["choices"]] == list(texts.values())
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert frames[-1] == "[DONE]"
    usage = frames[-2]["usage"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert whole["stream_aligner"]["cost"]["corrections"] == 3


async def test_headers_tell_who_aligned_a_reply_and_what_a_whole_one_cost() -> None:
    async with proxy(CONTINUED, WRONG, aligner=counting_right()) as p:
        whole = await p.post()
        streamed = await p.post(stream=True)
        twice = await p.post(n=2)
        plain = await p.post(stream_aligner={"mode": "off"})
    name = "x-stream-aligner-"
    assert whole.headers[f"{name}aligner"] == streamed.headers[f"{name}aligner"] == "default"
    assert f"{name}aligner" not in plain.headers
    told = whole.json()["stream_aligner"]
    assert int(whole.headers[f"{name}corrections"]) == told["cost"]["corrections"] == 1
    assert int(whole.headers[f"{name}branches"]) == told["cost"]["branches"] == 2
    assert int(whole.headers[f"{name}discarded-tokens"]) == told["cost"]["discarded_tokens"]
    assert int(whole.headers[f"{name}aligner-tokens"]) == 0
    assert int(whole.headers[f"{name}added-ms"]) == round(told["added_ms"])
    assert told["first_text_ms"] > 0
    assert told["added_ms"] > 0
    assert int(twice.headers[f"{name}corrections"]) == 2
    assert twice.json()["stream_aligner"]["added_ms"] >= 0
    for unknown in (streamed, plain):
        assert f"{name}added-ms" not in unknown.headers
    [end] = [f["stream_aligner"] for f in parse_frames(streamed.text) if "added_ms" in of(f)]
    assert end["cost"]["corrections"] == 1
    assert end["added_ms"] > 0
