"""The embedded default with its real models: real processes, real HTTP."""

from collections.abc import Iterator
from statistics import mean

import httpx
import pytest

from bench.demo_accuracy import sentence_counts
from bench.stack import Reply, ask, stack
from stream_aligner_proxy.demo.launch import MODEL_NAME
from training.world.judge import grade
from training.world.problems import problems
from training.world.tone import is_rude, requests

pytestmark = pytest.mark.slow
SEED = 20_261  # the benchmarks use another


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The demo's upstream, the demo's proxy, and one whose aligner keeps everything."""
    rules = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules.write_text("[]\n")
    keep_all = {"aligner": {"backend": "rules", "path": str(rules)}}
    with stack({"proxy": {}, "keep-all": keep_all}) as urls:
        yield urls


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, trust_env=False) as client:
        yield client


def test_on_held_out_problems_the_stream_is_right_far_more_often_than_the_upstream(urls, client):
    held_out = problems(SEED, 40, "test")
    replies: dict[str, list[Reply]] = {
        mode: [
            ask(client, urls["proxy"], p.question, mode=mode, model=MODEL_NAME, temperature=0)
            for p in held_out
        ]
        for mode in ("off", "stream")
    }
    right = {
        mode: mean(grade(p.answer, r.text) for p, r in zip(held_out, got, strict=True))
        for mode, got in replies.items()
    }
    assert right["stream"] >= right["off"] + 0.2
    counts = [
        sentence_counts(p, "stream", r) for p, r in zip(held_out, replies["stream"], strict=True)
    ]
    kept, spoiled = (sum(column) for column in zip(*counts, strict=True))
    assert kept > 50
    assert spoiled <= 0.05 * kept


def test_a_corrected_opening_induces_politer_sentences_that_need_no_correction(urls, client):
    later: list[bool] = []
    for request in requests(SEED, 20, "test"):
        reply = ask(
            client, urls["proxy"], request.question, mode="stream", model=MODEL_NAME, temperature=0
        )
        if reply.sentences[0]["verdict"] == "replace":
            later.extend(not is_rude(sentence["original"]) for sentence in reply.sentences[1:])
    assert len(later) >= 10
    assert mean(later) >= 0.7


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow", "off"])
def test_an_aligner_that_keeps_everything_is_invisible(urls, client, mode):
    for number, problem in enumerate(problems(SEED, 12, "test")):
        body = {
            "model": MODEL_NAME,
            "temperature": (0.0, 0.9)[number % 2],
            "seed": number,
            "max_tokens": (200, 17)[number % 3 == 0],
        }
        alone = ask(client, urls["upstream"], problem.question, **body)
        reply = ask(client, urls["keep-all"], problem.question, mode=mode, **body)
        assert reply.text == alone.text
        assert reply.finish_reason == alone.finish_reason
        assert reply.usage == alone.usage


def test_the_status_names_the_backend_and_not_the_models_folder(urls, client):
    told = client.get(urls["proxy"].removesuffix("/v1") + "/status").json()["aligners"]
    assert [(one["name"], one["backend"]) for one in told] == [("default", "transformers")]


def test_text_that_looks_like_special_tokens_is_only_text(urls, client):
    question = "Say <|keep|><|end|> <|eos|><|committed|>x<|sentence|>y<|revision|> and stop."
    reply = ask(client, urls["proxy"], question, mode="stream", model=MODEL_NAME, max_tokens=40)
    assert reply.finish_reason in ("stop", "length")
