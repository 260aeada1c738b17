"""The official SDK sees an OpenAI server."""

from collections.abc import Iterator

import openai
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.api.proxy import REPLY, settings
from tests.fakes import FunctionAligner
from tests.servers import serve_in_thread

ASK = {"model": "scripted", "messages": [{"role": "user", "content": "How many?"}]}
FAIL = {"model": "scripted", "messages": [{"role": "user", "content": "fail"}]}


def _judge(review: Review) -> Verdict:
    if "fail" in review.conversation[-1].text and "eats" in review.sentence:
        raise ReviewError("no verdict")
    return Verdict("She eats 1.") if "eats" in review.sentence else Verdict()


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    upstream = ScriptedUpstream(Script((Rule(REPLY),)))
    with serve_in_thread(upstream) as behind:
        app = create_app(settings(behind), aligner=FunctionAligner(_judge))
        with serve_in_thread(app) as address:
            yield f"{address}/v1"


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0) as client:
        yield client


ALIGNED = "Anna has 3 apples. She eats 1. So 2 are left."


def test_a_whole_completion(client: openai.OpenAI) -> None:
    extra = {"stream_aligner": {"mode": "stream", "provenance": True}}
    reply = client.chat.completions.create(**ASK, extra_body=extra)
    assert reply.choices[0].message.content == ALIGNED
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    sentences = reply.model_extra["stream_aligner"]["sentences"]
    assert "".join(sentence["text"] for sentence in sentences) == ALIGNED


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        **ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ALIGNED
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_the_streaming_helper_builds_the_same_completion(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASK) as stream:
        reply = stream.get_final_completion()
    assert reply.choices[0].message.content == ALIGNED


@pytest.mark.anyio
async def test_the_asynchronous_client(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused") as client:
        whole = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert whole.choices[0].message.content == text == ALIGNED


def test_an_error_in_the_middle_raises(client: openai.OpenAI) -> None:
    text = ""
    with pytest.raises(openai.APIError, match="no verdict") as raised:  # noqa: PT012
        for chunk in client.chat.completions.create(**FAIL, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert raised.value.code == "review_failed"
    assert text == "Anna has 3 apples."


def test_errors_before_the_first_text_have_their_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody", messages=ASK["messages"])
    assert raised.value.code == "model_not_found"
    assert raised.value.request_id
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASK, n=2)
    assert refused.value.param == "n"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/else")
