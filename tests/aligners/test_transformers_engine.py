"""The in-process aligner: verdicts, batches, cancellation, bounds, failures, start and close."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from stream_aligner_proxy.aligners import local_engine
from stream_aligner_proxy.aligners.registry import create
from stream_aligner_proxy.aligners.transformers_engine import TransformersAligner
from stream_aligner_proxy.aligners.worker import Job
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review, Turn, Verdict
from tests.aligners.models import ANSWERS, QUESTION, checkpoint, model, tokenizer, trained

pytestmark = pytest.mark.anyio

KEPT, CHANGED = "The hen sat.", "The cat sat on it."
VERDICTS = {
    "Both.": Verdict(),  # what comes after "keep" is not meant
    KEPT: Verdict(None),
    CHANGED: Verdict("The dog sat on it."),
    "Goodbye.": Verdict(None, end=True),
    "An oath!": Verdict(""),
    "One two.": Verdict("One, or two. And three."),
}
ERRORS = {
    "Odd.": "control token <|user|>",
    "Bytes.": "not valid text",
    "For ever.": "did not come to an end",
}


class Gate:
    """Holds every forward pass until it is let through; `failure` makes it raise."""

    def __init__(self, aligner: TransformersAligner) -> None:
        network = aligner._engine._decoder._network
        self._run = network.forward
        self._entered = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self.open = False
        self.rows: list[int] = []
        self.failure: BaseException | None = None
        self.change: Callable[[Any], Any] = lambda result: result
        network.forward = self._forward  # type: ignore[method-assign]

    def _forward(self, kv: Any, pending: Any, proposals: Any) -> Any:
        self.rows.append(len(pending))
        self._entered.release()
        if not self.open:
            assert self._go.acquire(timeout=20)
        if self.failure:
            raise self.failure
        return self.change(self._run(kv, pending, proposals))

    async def entered(self) -> None:
        """Wait until a pass is at the gate."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=20)

    def let_through(self) -> None:
        self._go.release()

    def stay_open(self) -> None:
        self.open = True
        self._go.release()


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[TransformersAligner]:
    aligner = TransformersAligner("aligner", **{"load": trained, **options})
    await aligner.start()
    try:
        yield aligner
    finally:
        await aligner.close()


def ask(aligner: TransformersAligner, sentence: str = CHANGED) -> asyncio.Task[Verdict]:
    return asyncio.ensure_future(aligner.review(Review(QUESTION, "", sentence)))


def same(verdict: Verdict, expected: Verdict) -> bool:
    return (verdict.replacement, verdict.end) == (expected.replacement, expected.end)


async def ticks() -> None:
    """Let every task that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("method", ["verify", "greedy"])
async def test_it_says_what_its_model_says(method: str) -> None:
    async with running(method=method) as aligner:
        assert aligner.scopes == {"sentence", "whole"}
        for sentence, expected in VERDICTS.items():
            verdict = await ask(aligner, sentence)
            assert same(verdict, expected)
            assert verdict.prompt_tokens > 0
            assert verdict.completion_tokens > 0
        for sentence, message in ERRORS.items():
            with pytest.raises(ReviewError, match=message):
                await ask(aligner, sentence)


async def test_reviews_at_the_same_time_get_what_they_get_alone() -> None:
    async with running(max_batch=4) as aligner:
        results = await asyncio.gather(
            *(ask(aligner, sentence) for sentence in [*ANSWERS, *ANSWERS]), return_exceptions=True
        )
    for sentence, result in zip([*ANSWERS, *ANSWERS], results, strict=True):
        if isinstance(result, ReviewError):
            assert ERRORS[sentence] in str(result)
        else:
            assert isinstance(result, Verdict)
            assert same(result, VERDICTS[sentence])


async def test_a_kept_sentence_costs_one_pass_and_a_small_edit_a_few() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        gate.stay_open()
        await ask(aligner, KEPT)
        assert len(gate.rows) == 1
        verdict = await ask(aligner, CHANGED)
        assert len(gate.rows) - 1 <= verdict.completion_tokens // 2


async def test_waiting_reviews_run_together_up_to_the_largest_batch() -> None:
    async with running(max_batch=3) as aligner:
        gate = Gate(aligner)
        first = ask(aligner)
        await gate.entered()
        others = [ask(aligner) for _ in range(4)]
        await ticks()
        gate.stay_open()
        await asyncio.gather(first, *others)
        assert max(gate.rows) == 3
        assert 2 in gate.rows  # two more made their first pass together and joined


async def test_the_event_loop_runs_while_the_model_does() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        task = ask(aligner)
        await gate.entered()
        await ticks()
        assert not task.done()
        gate.stay_open()
        assert same(await task, VERDICTS[CHANGED])


async def test_reviews_beyond_the_queue_wait_for_a_place() -> None:
    async with running(queue=2, max_batch=1) as aligner:
        gate = Gate(aligner)
        tasks = [ask(aligner) for _ in range(5)]
        await gate.entered()
        await ticks()
        worker = aligner._worker
        assert len(worker._running) + len(worker._waiting) == 2
        gate.stay_open()
        for task in tasks:
            assert same(await task, VERDICTS[CHANGED])


async def cancelled(task: asyncio.Task[Verdict]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_review_cancelled_before_it_has_a_place_takes_none() -> None:
    async with running(queue=1) as aligner:
        gate = Gate(aligner)
        first, second, third = (ask(aligner) for _ in range(3))
        await gate.entered()
        await cancelled(second)
        gate.stay_open()
        assert same(await first, VERDICTS[CHANGED])
        assert same(await third, VERDICTS[CHANGED])


async def test_a_review_cancelled_in_the_queue_never_runs() -> None:
    async with running(max_batch=1) as aligner:
        gate = Gate(aligner)
        first = ask(aligner, KEPT)
        await gate.entered()
        second, third = ask(aligner, CHANGED), ask(aligner, KEPT)
        await ticks()
        await cancelled(second)
        assert len(aligner._worker._waiting) == 1
        gate.stay_open()
        await asyncio.gather(first, third)
        assert gate.rows == [1, 1]


async def test_a_review_cancelled_in_its_first_pass_leaves_the_others_alone() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        blocker = ask(aligner, KEPT)
        await gate.entered()
        first, second = ask(aligner), ask(aligner)
        await ticks()
        gate.let_through()
        await gate.entered()
        assert gate.rows == [1, 2]
        await cancelled(first)
        gate.stay_open()
        assert same(await second, VERDICTS[CHANGED])
        assert same(await blocker, VERDICTS[KEPT])
        assert set(gate.rows[3:]) == {1}
        assert aligner._worker._running == {}


async def test_a_review_cancelled_between_passes_is_withdrawn_before_the_next() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        task = ask(aligner)
        for _ in range(3):
            await gate.entered()
            gate.let_through()
        await gate.entered()
        passes = len(gate.rows)
        await cancelled(task)
        gate.stay_open()
        assert same(await ask(aligner, KEPT), VERDICTS[KEPT])
        assert len(gate.rows) == passes + 1


async def test_a_review_cancelled_when_its_verdict_is_on_its_way_stays_cancelled() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        task = ask(aligner, KEPT)
        await gate.entered()
        gate.stay_open()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert same(await ask(aligner, KEPT), VERDICTS[KEPT])


async def test_a_review_that_takes_too_long_is_an_error_and_is_withdrawn() -> None:
    async with running(timeout=0.05) as aligner:
        gate = Gate(aligner)
        with pytest.raises(ReviewError, match=r"longer than 0\.05 s"):
            await ask(aligner)
        assert all(job.withdrawn for job in aligner._worker._running.values())
        gate.stay_open()


async def test_waiting_for_a_place_counts_against_the_timeout() -> None:
    async with running(timeout=0.05, queue=1) as aligner:
        gate = Gate(aligner)
        results = await asyncio.gather(ask(aligner), ask(aligner), return_exceptions=True)
        assert [type(result) for result in results] == [ReviewError, ReviewError]
        gate.stay_open()


@pytest.mark.parametrize("failure", [RuntimeError("secret"), torch.OutOfMemoryError("secret")])
async def test_a_failing_pass_fails_its_reviews_and_the_thread_lives_on(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        gate.failure = failure
        gate.stay_open()
        with pytest.raises(ReviewError, match=type(failure).__name__) as caught:
            await ask(aligner)
        assert "secret" not in str(caught.value)
        assert "secret" in caplog.text
        gate.failure = None
        assert same(await ask(aligner), VERDICTS[CHANGED])


async def test_a_failure_in_the_first_pass_of_newcomers_spares_those_who_run() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        runs = ask(aligner)
        await gate.entered()
        gate.let_through()
        await gate.entered()
        comes = ask(aligner)
        await ticks()
        gate.let_through()
        await gate.entered()
        gate.failure = RuntimeError()
        gate.let_through()
        await gate.entered()
        gate.failure = None
        gate.stay_open()
        with pytest.raises(ReviewError):
            await comes
        assert same(await runs, VERDICTS[CHANGED])


async def test_logits_that_are_no_numbers_are_an_error() -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        gate.change = lambda logits: logits * float("nan")
        gate.stay_open()
        with pytest.raises(ReviewError, match="no numbers"):
            await ask(aligner)


async def test_a_review_that_cannot_be_encoded_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as aligner:
        draft = aligner._engine._encoder.draft

        def broken(review: Review) -> tuple[int, ...]:
            if review.sentence == KEPT:
                raise KeyError("text")
            return draft(review)

        monkeypatch.setattr(aligner._engine._encoder, "draft", broken)
        good, bad = ask(aligner), ask(aligner, KEPT)
        with pytest.raises(ReviewError, match="KeyError"):
            await bad
        assert same(await good, VERDICTS[CHANGED])


async def test_a_revision_that_cannot_be_read_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as aligner:
        monkeypatch.setattr(aligner._engine, "read", lambda *_: {}["nothing"])
        with pytest.raises(ReviewError, match="KeyError"):
            await ask(aligner)


async def test_a_thread_that_cannot_go_on_fails_every_review(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as aligner:
        gate = Gate(aligner)
        gate.failure = RuntimeError("device-side assert")

        def lost() -> None:
            raise RuntimeError("the device is lost")

        monkeypatch.setattr(aligner._engine, "recover", lost)
        tasks = [ask(aligner), ask(aligner)]
        gate.stay_open()
        for task in tasks:
            with pytest.raises(ReviewError):
                await task
        await asyncio.to_thread(aligner._worker._thread.join, timeout=20)
        assert "the device is lost" in caplog.text
        assert not aligner.ready
        with pytest.raises(ReviewError, match="closed"):
            await ask(aligner)


async def test_closing_fails_what_waits_and_what_runs() -> None:
    aligner = TransformersAligner("aligner", load=trained, max_batch=1, queue=2)
    assert not aligner.ready
    await aligner.start()
    assert aligner.ready
    gate = Gate(aligner)
    tasks = [ask(aligner) for _ in range(4)]
    await gate.entered()
    closing = asyncio.ensure_future(aligner.close())
    await ticks()
    gate.stay_open()
    await closing
    for task in tasks:
        with pytest.raises(ReviewError, match="closed"):
            await task
    with pytest.raises(ReviewError, match="closed"):
        await ask(aligner)
    assert not aligner._worker._thread.is_alive()
    await aligner.close()


async def test_an_aligner_that_was_never_started_says_so_and_can_be_closed() -> None:
    aligner = TransformersAligner("aligner", load=trained)
    with pytest.raises(ReviewError, match="not started"):
        await ask(aligner)
    await aligner.close()


async def test_loading_happens_off_the_event_loop_and_once() -> None:
    threads = []

    def load() -> Any:
        threads.append(threading.current_thread())
        return trained()

    async with running(load=load) as aligner:
        await aligner.start()
    assert threads == [aligner._worker._thread]


async def test_a_verdict_for_a_loop_that_is_gone_is_dropped() -> None:
    async with running() as aligner:
        gone = asyncio.new_event_loop()
        job = Job(Review(QUESTION, "", KEPT), gone)
        gone.close()
        aligner._worker.submit(job)
        assert same(await ask(aligner), VERDICTS[CHANGED])


async def test_a_scope_that_the_profile_does_not_know_is_refused() -> None:
    async with running(profile="aligner", load=checkpoint) as aligner:
        assert aligner.scopes == {"whole"}
        with pytest.raises(ReviewError, match="cannot review a sentence"):
            await ask(aligner)


@pytest.mark.parametrize("profile", ["compact", "stream-aligner", "stream-aligner-plain"])
async def test_no_prompt_and_no_revision_leaves_the_window(profile: str) -> None:
    async with running(profile=profile, load=checkpoint, window=160) as aligner:
        longest = 0
        run = aligner._engine._decoder._network.forward

        def measured(kv: Any, pending: Any, proposals: Any) -> Any:
            nonlocal longest
            result = run(kv, pending, proposals)
            longest = max(longest, *kv.lengths())
            return result

        aligner._engine._decoder._network.forward = measured  # type: ignore[method-assign]
        talk = tuple(Turn("user", f"{n}. Is it so? " * 5) for n in range(5))
        for size in (1, 5, 20, 60):
            review = Review(talk, "It is. " * 40, "x" * size)
            with suppress(ReviewError):  # a random model says what it likes
                await aligner.review(review)
        assert 100 < longest <= 160
        with pytest.raises(ReviewError, match="does not fit the aligner's window"):
            await aligner.review(Review(talk, "", "x" * 150))


async def test_an_architecture_that_cannot_be_padded_runs_one_review_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_engine, "takes_back", lambda _network, rows: rows == 1)
    async with running() as aligner:
        gate = Gate(aligner)
        gate.stay_open()
        verdicts = await asyncio.gather(*(ask(aligner) for _ in range(3)))
        assert all(same(verdict, VERDICTS[CHANGED]) for verdict in verdicts)
        assert set(gate.rows) == {1}


async def test_an_architecture_without_a_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine, "takes_back", lambda _network, _rows: False)
    with pytest.raises(ConfigError, match=r"aligner\.path: .*take back"):
        async with running():
            pass


def saved(path: Path, **files: object) -> Path:
    words = tokenizer()
    model("llama", len(words)).save_pretrained(path)
    words.save_pretrained(path)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


async def test_a_saved_checkpoint_is_loaded_with_the_profile_it_was_trained_for(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path / "tiny", training_config={"prompt_profile": "aligner"})
    aligner = create({"backend": "transformers", "path": path, "device": "cpu", "window": None})
    await aligner.start()
    assert aligner.name == "tiny"
    assert aligner.scopes == {"whole"}
    await aligner.close()


async def test_the_setting_wins_over_the_checkpoints_profile_and_half_precision_loads(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, training_config={"prompt_profile": "aligner"})
    aligner = TransformersAligner(path, profile="compact", dtype="bfloat16")
    await aligner.start()
    assert aligner.scopes == {"sentence", "whole"}
    assert aligner._engine._decoder._network.model.dtype == torch.bfloat16
    await aligner.close()


def without(path: Path, name: str) -> None:
    (path / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda p: None, {}, "aligner.profile: not set"),
        (lambda p: None, {"device": "abacus"}, "aligner.device: 'abacus'"),
        (lambda p: None, {"dtype": "int3"}, "aligner.dtype: 'int3'"),
        (lambda p: None, {"profile": "compact", "window": 20}, "aligner.window: 20 tokens"),
        (lambda p: without(p, "config.json"), {}, "has no config.json"),
        (lambda p: without(p, "model.safetensors"), {}, "cannot be loaded"),
        (lambda p: (p / "model.safetensors").write_bytes(b"\0" * 9), {}, "cannot be loaded"),
        (lambda p: (p / "training_config.json").write_text("{"), {}, "is not JSON"),
        (lambda p: (p / "training_config.json").write_text("[]"), {}, "not a JSON object"),
        (
            lambda p: (p / "training_config.json").write_text('{"prompt_profile": "haiku"}'),
            {},
            "aligner.profile: unknown profile 'haiku'",
        ),
    ],
)
async def test_a_checkpoint_that_cannot_work_is_refused_with_the_setting_to_mend(
    tmp_path: Path, spoil: Callable[[Path], object], options: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path)
    spoil(path)
    aligner = TransformersAligner(path, **options)
    with pytest.raises(ConfigError) as caught:
        await aligner.start()
    assert str(caught.value).startswith("aligner.")
    assert message in str(caught.value)
    with pytest.raises(ReviewError):
        await ask(aligner)
    await aligner.close()


async def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"aligner\.path: .*nowhere: is not a directory"):
        await TransformersAligner(tmp_path / "nowhere").start()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
async def test_cuda_where_there_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"aligner\.device: 'cuda', but there is no"):
        await TransformersAligner(saved(tmp_path), device="cuda").start()


async def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model("llama", 200).save_pretrained(path)
    with pytest.raises(ConfigError, match=r"tokenizer has \d+ ids, the model 200"):
        await TransformersAligner(path).start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, r"aligner\.max_batch: must be at least 1"),
        ({"queue": 0}, r"aligner\.queue: must be at least 1"),
        ({"threads": -1}, r"aligner\.threads: must be at least 1"),
        ({"method": "guess"}, r"aligner\.method: 'guess'; known are verify, greedy"),
        ({"temperature": -1}, r"aligner\.temperature: must be 0 or more"),
        ({"temperature": float("inf")}, r"aligner\.temperature: must be 0 or more"),
        ({"top_k": -1}, r"aligner\.top_k: must be 0 \(all\) or more"),
        ({"top_p": 0}, r"aligner\.top_p: must be above 0"),
        ({"profile": "haiku"}, r"aligner\.profile: unknown profile 'haiku'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformersAligner("aligner", **options)
