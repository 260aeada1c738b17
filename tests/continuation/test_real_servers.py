"""Real servers with the demo's model: a reply continued from each sentence end is the reply.

(vLLM's are in tests/vllm, in the environment that it needs.)
"""

import asyncio
from collections.abc import Iterator

import pytest

from bench.continuation import ASKED, Asked
from bench.continuing import cuts_of, measure, questions, through
from bench.real_servers import MODEL, Running, servers
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.client import HttpUpstream

pytestmark = [
    pytest.mark.skipif(not MODEL.is_dir(), reason="the demo models have not been built"),
    pytest.mark.timeout(240),
]
QUESTIONS = questions(3)


@pytest.fixture(scope="module", params=["demo", "transformers", "llamacpp"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[str, Running]]:
    server = servers()[request.param]
    if server.missing:
        pytest.skip(server.missing)
    with server.run() as there:
        yield server.name, there


def upstream_of(there: Running, asked: Asked) -> HttpUpstream:
    return HttpUpstream(
        "real",
        f"{there.address}/v1",
        asked.dialect,
        continuation=asked.continuation,
        tokenizer=MODEL if asked.template else None,
    )


def test_every_exact_way_is_exact_at_every_sentence(running: tuple[str, Running]) -> None:
    name, there = running

    async def cuts(asked: Asked) -> list[str]:
        upstream = upstream_of(there, asked)
        try:
            found = await measure(through(upstream, there.model), QUESTIONS)
        finally:
            await upstream.aclose()
        assert len(found) >= len(QUESTIONS)
        return [f"{asked}: {cut.prefix[-40:]!r}: {cut.why()}" for cut in found if not cut.equal]

    exact = [a for a in ASKED[name] if a.continuation != "instruct" and a.dialect != "generic"]
    assert exact
    for asked in exact:
        assert asyncio.run(cuts(asked)) == []


def test_the_probe_finds_what_the_server_does(running: tuple[str, Running]) -> None:
    """Asked as `generic`, which knows nothing of it; and as the dialect that knows the flags."""
    name, there = running

    async def found(dialect: str) -> tuple[str, str]:
        upstream = HttpUpstream("real", f"{there.address}/v1", dialect)
        request = ChatRequest(
            there.model, {"model": there.model, "messages": [{"role": "user"}]}, ()
        )
        try:
            return await upstream.probe(there.model), upstream.continuation(request).way
        finally:
            await upstream.aclose()

    plain = asyncio.run(found("generic"))
    if name == "demo":
        assert plain == ("restarts", "instruct")  # as vLLM: a new turn begins in silence
        assert asyncio.run(found("vllm")) == ("continues", "prefill")
    elif name == "llamacpp":
        assert plain == ("continues", "prefill")  # an assistant message at the end is gone on with
        assert asyncio.run(found("llamacpp")) == ("continues", "prefill")
    else:
        assert plain == ("restarts", "instruct")
        assert asyncio.run(found("transformers"))[1] == "instruct"


def test_the_cuts_are_every_sentence_end() -> None:
    assert cuts_of("One. Two! Three") == ["One.", "One. Two!", "One. Two! Three"]
