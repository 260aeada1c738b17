"""The remote aligner against a real server in front of a tiny model: verdicts, progress, dial."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from stream_aligner_proxy.aligners import remote_server
from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import NEUTRAL, Review, Turn, Verdict
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import ANSWERS, QUESTION, checkpoint, trained
from tests.aligners.remotes import (
    asked,
    served,
)
from tests.aligners.test_transformers_engine import CHANGED, ERRORS, KEPT, VERDICTS, same

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]

# What servers of different kinds can do, from vLLM down to what OpenAI's older API asks for.
KINDS: dict[str, dict[str, Any]] = {
    "ids and chances": {},
    "ids, few chances": {"chances": 5},
    "ids, no chances": {"chances": 0},
    "text and chances": {"ids": False, "named": True},
    "text alone": {"ids": False, "chances": 0},
}
DIALLED = ("ids and chances", "ids, few chances", "text and chances")


@pytest.mark.parametrize("kind", KINDS)
async def test_it_says_what_its_model_says(folder: Path, kind: str) -> None:
    async with served(folder, CompletionServer(trained(), **KINDS[kind])) as aligner:
        assert aligner.scopes == {"sentence", "whole"}
        assert aligner.ready
        assert aligner.strengths == ((0.0, 1.0) if kind in DIALLED else (NEUTRAL, NEUTRAL))
        for sentence, expected in VERDICTS.items():
            verdict = await aligner.review(asked(sentence))
            assert same(verdict, expected), sentence
            assert verdict.prompt_tokens > 0
            assert verdict.completion_tokens > 0
        for sentence, message in ERRORS.items():
            with pytest.raises(ReviewError, match=message.replace("|", r"\|")):
                await aligner.review(asked(sentence))


async def test_reviews_at_the_same_time_get_what_they_get_alone(folder: Path) -> None:
    async with served(folder, CompletionServer(trained())) as aligner:
        results = await asyncio.gather(
            *(aligner.review(asked(sentence)) for sentence in [*ANSWERS, *ANSWERS]),
            return_exceptions=True,
        )
    for sentence, result in zip([*ANSWERS, *ANSWERS], results, strict=True):
        if isinstance(result, ReviewError):
            assert ERRORS[sentence] in str(result)
        else:
            assert isinstance(result, Verdict)
            assert same(result, VERDICTS[sentence])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_revision_is_told_as_it_is_written_in_whole_words(folder: Path, kind: str) -> None:
    server = CompletionServer(trained(), **KINDS[kind])
    async with served(folder, server) as aligner:
        for sentence, expected in VERDICTS.items():
            told: list[str] = []
            await aligner.review(asked(sentence), told.append)
            whole = expected.replacement or ""
            assert told == sorted(set(told), key=len)
            for text in told:
                assert whole.startswith(text)
                assert whole[len(text)].isspace()
        told = []
        await aligner.review(asked(CHANGED), told.append)
        assert told == ["The", "The dog", "The dog sat", "The dog sat on"]


async def test_progress_comes_before_the_revision_is_over(folder: Path) -> None:
    server = CompletionServer(trained(), ungated=12)
    async with served(folder, server) as aligner:
        server.gate = asyncio.Event()
        told = asyncio.Event()
        review = asyncio.ensure_future(aligner.review(asked(), lambda _: told.set()))
        async with asyncio.timeout(20):
            await told.wait()
        assert not review.done()
        server.gate.set()
        assert same(await review, VERDICTS[CHANGED])


@pytest.mark.parametrize("kind", DIALLED)
async def test_turned_down_it_leaves_alone_and_does_not_wait_for_the_rest(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "_DRAIN_SECONDS", 60.0)
    server = CompletionServer(trained(), ungated=1, **KINDS[kind])
    async with served(folder, server) as aligner:
        server.gate = asyncio.Event()  # the second token never comes
        async with asyncio.timeout(20):
            assert (await aligner.review(asked(CHANGED, 0.0))).kept
        await server.until(lambda: server.running == 0)
        assert len(server.bodies) == 1


@pytest.mark.parametrize("kind", DIALLED)
async def test_turned_up_it_asks_again_with_the_best_other_beginning(
    folder: Path, kind: str
) -> None:
    server = CompletionServer(trained(), **KINDS[kind])
    async with served(folder, server) as aligner:
        with suppress(ReviewError):  # the tiny model was never taught what comes then
            assert not (await aligner.review(asked(KEPT, 1.0))).kept
        first, second = server.bodies
        assert first["logprobs"] > 0
        assert "logprobs" not in second
        assert second["prompt"][:-1] == first["prompt"]
        assert second["max_tokens"] == first["max_tokens"] - 1
        begun = second["prompt"][-1]
        assert begun not in aligner._encoder.special - aligner._encoder.ends
        assert begun == best_other(aligner, first["prompt"])


def best_other(aligner: RemoteAligner, prompt: list[int]) -> int:
    """By the definition: the likeliest token that is not keep and that an answer may hold."""
    chances = CompletionServer(trained()).logits(prompt)
    encoder = aligner._encoder
    for token in chances.argsort(descending=True).tolist():
        if token != encoder.keep and token not in encoder.meaningless:
            return int(token)
    raise AssertionError


async def test_in_the_middle_no_chances_are_asked_for(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        await aligner.review(asked(KEPT))
        assert "logprobs" not in server.bodies[0]


async def test_a_little_up_or_down_changes_no_clear_verdict(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        for strength in (0.4, 0.6):
            assert (await aligner.review(asked(KEPT, strength))).kept
            assert same(await aligner.review(asked(CHANGED, strength)), VERDICTS[CHANGED])
        assert len(server.bodies) == 4


async def test_where_there_are_no_chances_a_dialled_review_is_refused(folder: Path) -> None:
    async with served(folder, CompletionServer(trained(), chances=0)) as aligner:
        with pytest.raises(ReviewError, match="cannot be dialled"):
            await aligner.review(asked(KEPT, 0.2))


async def test_a_profile_without_a_keep_token_has_no_dial(folder: Path) -> None:
    server = CompletionServer(checkpoint())
    async with served(folder, server, profile="stream-aligner") as aligner:
        assert aligner.strengths == (NEUTRAL, NEUTRAL)


async def test_settings_of_drawing_and_length_are_sent(folder: Path) -> None:
    server = CompletionServer(trained())
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    async with served(folder, server, **options, max_new_extra=5, max_new_factor=1.0) as aligner:
        await aligner.review(asked(KEPT))
        body = server.bodies[0]
        assert {key: body[key] for key in options} == options
        assert body["max_tokens"] == len(aligner._encoder.draft(asked(KEPT))) + 5
        assert body["prompt"] == list(aligner._encoder.prompt(asked(KEPT)))


async def test_the_smallest_window_of_all_holds(folder: Path) -> None:
    servers = [CompletionServer(trained(), window=512), CompletionServer(trained(), window=160)]
    async with served(folder, *servers, window=400) as aligner:
        talk = tuple(Turn("user", f"{n}. Is it so? " * 5) for n in range(5))
        for size in (1, 5, 20):
            with suppress(ReviewError):  # the tiny model says what it likes
                await aligner.review(Review(talk, "It is. " * 80, "x" * size))
        bodies = [body for server in servers for body in server.bodies]
        assert len(bodies) == 3
        assert all(100 < len(body["prompt"]) + body["max_tokens"] <= 160 for body in bodies)
        with pytest.raises(ReviewError, match="does not fit the aligner's window"):
            await aligner.review(Review(talk, "", "x" * 200))


@pytest.mark.parametrize("mark", ["<|keep|>", "<|user|>", "<|eos|>"])
async def test_without_ids_text_that_looks_like_a_control_token_is_not_reviewed(
    folder: Path, mark: str
) -> None:
    async with served(folder, CompletionServer(trained(), **KINDS["text alone"])) as aligner:
        for review in (
            Review(QUESTION, "", f"The {mark} sat."),
            Review(QUESTION, f"As {mark} said.", KEPT),
            Review((Turn("user", mark),), "", KEPT),
        ):
            with pytest.raises(ReviewError, match="holds the name of a control token"):
                await aligner.review(review)


async def test_a_scope_that_the_profile_does_not_know_is_refused(folder: Path) -> None:
    async with served(folder, CompletionServer(checkpoint()), profile="aligner") as aligner:
        assert aligner.scopes == {"whole"}
        with pytest.raises(ReviewError, match="cannot review a sentence"):
            await aligner.review(asked())


async def test_a_plain_openai_server_will_do_for_a_published_format(folder: Path) -> None:
    server = CompletionServer(checkpoint(), ids=False, strict=True, chances=0)
    async with served(folder, server, profile="stream-aligner-plain", max_new_extra=8) as aligner:
        with suppress(ReviewError):  # a random model; what counts is that it was asked
            await aligner.review(asked())
        assert "<|eos|>" in server.bodies[0]["stop"]
