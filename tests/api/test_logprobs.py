"""Log probabilities in aligned modes: those of unchanged sentences, where the operator says so."""

from typing import Any

import pytest

from stream_aligner_proxy.demo.script import Chunking, Rule
from tests.api.proxy import REPLY, proxy, replacing
from tests.fakes import TellingAligner

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
TOLD = {"alignment": {"logprobs": "unchanged"}}
CUTS = [Chunking("words"), Chunking("characters"), Chunking("random", 9, 2), Chunking("tokens", 40)]


def content(frames: list[Any]) -> list[dict[str, Any]]:
    """All entries of a stream."""
    found: list[dict[str, Any]] = []
    for frame in frames[:-1]:
        for choice in frame["choices"]:
            if choice["logprobs"] is not None:
                assert choice["logprobs"]["refusal"] is None
                assert choice["logprobs"]["content"]
                found += choice["logprobs"]["content"]
    return found


def said(entries: list[dict[str, Any]]) -> str:
    return "".join(entry["token"] for entry in entries)


@pytest.mark.parametrize("chunk", CUTS)
@pytest.mark.parametrize("mode", ["stream", "whole", "shadow"])
async def test_of_an_unchanged_reply_all_are_told_as_the_upstream_told_them(
    mode: str, chunk: Chunking
) -> None:
    async with proxy(Rule(REPLY, chunk=chunk), **TOLD) as p:
        frames = await p.frames(**ASKED, stream_aligner={"mode": mode})
        whole = (await p.post(**ASKED, stream_aligner={"mode": mode})).json()
        plain = await p.frames(**ASKED, stream_aligner={"mode": "off"})
        assert p.upstream.requests[0].body["top_logprobs"] == 2
    entries = content(frames)
    assert said(entries) == REPLY
    assert entries == content(plain)
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert whole["choices"][0]["logprobs"] == {"content": entries, "refusal": None}


@pytest.mark.parametrize("chunk", CUTS)
async def test_a_rewritten_sentence_has_none_and_its_neighbours_have_theirs(
    chunk: Chunking,
) -> None:
    async with proxy(
        Rule(REPLY, chunk=chunk), aligner=replacing(eats="She eats two."), **TOLD
    ) as p:
        frames = await p.frames(**ASKED)
        whole = (await p.post(**ASKED)).json()["choices"][0]
        assert len(p.upstream.requests) == 4
    assert said(content(frames)) == "Anna has 3 apples. So 2 are left."
    assert whole["logprobs"]["content"] == content(frames)
    for frame in frames[:-1]:
        choice = frame["choices"][0]
        if choice["logprobs"] is not None:
            assert said(choice["logprobs"]["content"]) == choice["delta"]["content"]


async def test_they_come_with_the_end_of_a_sentence_that_was_told_before_its_verdict() -> None:
    async with proxy(aligner=TellingAligner(), **TOLD) as p:
        frames = await p.frames(**ASKED)
        whole = (await p.post(**ASKED)).json()["choices"][0]
    assert said(content(frames)) == REPLY
    assert whole["logprobs"]["content"] == content(frames)


async def test_a_rewritten_whole_answer_has_none() -> None:
    async with proxy(aligner=replacing(eats="No."), **TOLD) as p:
        reply = (await p.post(**ASKED, stream_aligner={"mode": "whole"})).json()
    assert reply["choices"][0]["message"]["content"] == "No."
    assert reply["choices"][0]["logprobs"] is None


async def test_without_asking_none_are_told() -> None:
    async with proxy(**TOLD) as p:
        assert content(await p.frames()) == []
        assert (await p.post()).json()["choices"][0]["logprobs"] is None


async def test_each_choice_has_its_own() -> None:
    rules = (Rule("No. Never.", seed=8), Rule(REPLY))
    async with proxy(*rules, **TOLD) as p:
        choices = (await p.post(**ASKED, n=2, seed=7)).json()["choices"]
    texts = [said(choice["logprobs"]["content"]) for choice in choices]
    assert texts == [REPLY, "No. Never."]
