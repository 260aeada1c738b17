"""An aligner that runs a transformers model inside the proxy's process, on CPU or CUDA.

The event loop only queues and waits: encoding, forward passes and decoding happen in one thread
(`worker`), a batch at a time, with the draft verified instead of generated (`decoding`).
"""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from stream_aligner_proxy.aligners import checkpoint as checkpoints
from stream_aligner_proxy.aligners.checkpoint import Checkpoint
from stream_aligner_proxy.aligners.decoding import Batch, Decoder, Method, Row
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.kv import Prefixes
from stream_aligner_proxy.aligners.network import Network, takes_back
from stream_aligner_proxy.aligners.worker import Job, Worker
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.prompts import END, KEEP, PROFILES, fit
from stream_aligner_proxy.core.records import NEUTRAL, Review, Scope, Turn, Verdict

log = logging.getLogger(__name__)

Load = Callable[[], Checkpoint]


class TransformersAligner:
    """Reviews with a local checkpoint.

    `path`: a local directory as `save_pretrained` writes it. `profile`: the prompt profile, by
    default the one in the checkpoint's `training_config.json`. `device`: `auto`, `cpu`, `cuda`,
    `cuda:1`. `dtype`: `auto` (bfloat16 on CUDA, float32 on CPU), `bfloat16`,
    `float16`, `float32`, or `bf16`, `fp16`, `fp32`. `window`: tokens
    of prompt and revision together, at most the model's own. `max_batch`: reviews decoded
    together. `queue`: reviews waiting or running; more wait for a place. `timeout`: seconds from
    the call to the verdict, the wait included; None for no limit. `max_new_factor` and
    `max_new_extra`: a revision has at most factor x draft + extra tokens. `threads`: torch's
    threads for one operation, for the whole process; by default one up to four cores (more only
    steal from the event loop), else half the cores. `prefix_cache_tokens`: how many tokens of
    earlier prompts stay cached; 0 for none. `method`: `greedy` switches the draft off.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        profile: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        window: int | None = None,
        max_batch: int = 16,
        queue: int = 64,
        timeout: float | None = 30.0,
        max_new_factor: float = 2.0,
        max_new_extra: int = 64,
        threads: int | None = None,
        prefix_cache_tokens: int = 16_384,
        method: Method = "verify",
        load: Load | None = None,
    ) -> None:
        for key, value in (("max_batch", max_batch), ("queue", queue), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"aligner.{key}: must be at least 1, not {value}")
        if method not in ("verify", "greedy"):
            raise ConfigError(f"aligner.method: {method!r}; known are verify, greedy")
        if profile is not None and profile not in PROFILES:
            raise ConfigError(
                f"aligner.profile: unknown profile {profile!r}; known are {', '.join(PROFILES)}"
            )
        path = Path(path)
        self.name = name or path.name
        self._engine = LocalEngine(
            load or (lambda: checkpoints.load(path, device=device, dtype=dtype)),
            profile=profile,
            window=window,
            max_batch=max_batch,
            max_new=lambda draft: int(max_new_factor * draft) + max_new_extra,
            threads=threads or _threads(),
            prefix_cache_tokens=prefix_cache_tokens,
            method=method,
        )
        self._worker = Worker(self._engine, f"aligner-{self.name}")
        self._places = asyncio.Semaphore(queue)
        self._timeout = timeout
        self._started = self._loaded = False

    @property
    def scopes(self) -> frozenset[Scope]:
        """What the profile can judge; known after `start`."""
        return self._engine.scopes

    @property
    def strengths(self) -> tuple[float, float]:
        return NEUTRAL, NEUTRAL

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and its thread takes reviews."""
        return self._loaded and self._worker.alive

    async def start(self) -> None:
        """Load and warm up in the thread. Raises `ConfigError` for what can never work."""
        if self._started:
            return
        self._started = True
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if loaded.done():
                return
            if error is None:
                loaded.set_result(None)
            else:
                loaded.set_exception(error)

        def ready(error: BaseException | None) -> None:
            # The loop may be gone by the time a large model is loaded.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, error)

        self._worker.start(ready)
        await loaded
        self._loaded = True

    def expect(self, review: Review) -> None:
        """Read what is known of a coming review, when there is nothing else to do."""

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """The verdict. Raises `ReviewError`, also when the deadline passes."""
        if not self._started:
            raise ReviewError("the aligner is not started")
        if review.scope not in self.scopes:
            raise ReviewError(f"the aligner's profile cannot review a {review.scope}")
        try:
            async with asyncio.timeout(self._timeout):
                async with self._places:
                    return await self._run(review)
        except TimeoutError:
            raise ReviewError(f"the aligner took longer than {self._timeout} s") from None

    async def _run(self, review: Review) -> Verdict:
        job = Job(review, asyncio.get_running_loop())
        self._worker.submit(job)
        try:
            return await job.future
        finally:
            self._worker.withdraw(job)

    async def close(self) -> None:
        """Fail what is unfinished and end the thread."""
        await asyncio.to_thread(self._worker.close)


class LocalEngine:
    """The model side of a review; lives in the worker's thread (see `worker.Engine`)."""

    scopes: frozenset[Scope] = frozenset()

    def __init__(
        self,
        load: Load,
        *,
        profile: str | None,
        window: int | None,
        max_batch: int,
        max_new: Callable[[int], int],
        threads: int,
        prefix_cache_tokens: int,
        method: Method,
    ) -> None:
        self._load = load
        self._profile = profile
        self._window = window or 0
        self._max_new = max_new
        self._threads = threads
        self._method: Method = method
        self._prefixes = Prefixes(prefix_cache_tokens)
        self.max_rows = max_batch
        self._encoder: Encoder
        self._decoder: Decoder

    def load(self) -> None:
        torch.set_num_threads(self._threads)
        checkpoint = self._load()
        profile = checkpoints.choose_profile(self._profile, checkpoint)
        self._window = min(self._window or checkpoint.window, checkpoint.window)
        self._encoder = Encoder(checkpoint.tokenizer, profile, checkpoint.ends)
        network = Network(checkpoint.model)
        self._decoder = Decoder(
            network,
            self._encoder.ends,
            keep=self._encoder.keep,
            method=self._method,
            prefixes=self._prefixes,
        )
        self.scopes = profile.scopes
        if not takes_back(network, 1):
            raise ConfigError(
                "aligner.path: this model's cache cannot take back a guess (it keeps a state, or"
                " does not run at all; see the log): use another architecture"
            )
        if self.max_rows > 1 and not takes_back(network, 2):
            log.warning("this architecture cannot be batched here; reviews run one at a time")
            self.max_rows = 1
        try:
            self._warm_up()
        except ReviewError as error:
            raise ConfigError(f"aligner.window: {self._window} tokens: {error}") from error

    def prepare(self, review: Review) -> Row:
        """Fit the review into the window and encode it. Raises `ReviewError` where it cannot."""
        encoder = self._encoder
        draft = encoder.draft(review)
        bare = Review((), "", review.sentence, review.scope)
        free = (
            self._window - encoder.overhead - sum(map(encoder.count, encoder.profile.render(bare)))
        )
        # The revision may take all it is allowed, but a long sentence leaves half of what is left
        # to the context, unless the sentence itself needs more.
        room = min(self._max_new(len(draft)), max(free // 2, len(draft)))
        budget = self._window - encoder.overhead - room
        if budget <= 0:
            raise ReviewError("the sentence does not fit the aligner's window")
        fitted = fit(review, encoder.profile, encoder.count, budget)
        prompt = encoder.prompt(fitted)
        if len(prompt) + room > self._window:
            raise ReviewError("the review does not fit the aligner's window")
        return Row(prompt, draft, room)

    def begin(self, rows: list[Row]) -> Batch:
        return self._decoder.begin(rows)

    def step(self, batch: Batch) -> list[Row]:
        return self._decoder.step(batch)

    def read(self, row: Row, review: Review) -> Verdict:
        """The verdict of a finished row. Raises `ReviewError` for output nobody can trust."""
        if row.finished == "broken":
            raise ReviewError("the aligner's model gave logits that are no numbers")
        revision = self._encoder.revision(row.output, finished=row.finished == "end")
        for control in revision.controls:
            if control not in (KEEP, END):
                raise ReviewError(f"the aligner wrote the control token {control}")
        if "\ufffd" in revision.text and "\ufffd" not in review.sentence:
            raise ReviewError("the aligner's revision is not valid text")
        verdict = self._encoder.profile.read(revision, review)
        return Verdict(verdict.replacement, verdict.end, len(row.prompt), len(row.output))

    def recover(self) -> None:
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _warm_up(self) -> None:
        """One small review, so that the first real one does not pay for lazy initialisation."""
        review = Review((Turn("user", "Hello."),), "", "Hello there.", next(iter(self.scopes)))
        row = self.prepare(review)
        row.max_new = 2
        batch = self.begin([row])
        while batch.lanes:
            self.step(batch)
        self._prefixes.clear()


def _threads() -> int:
    cores = os.cpu_count() or 1
    return 1 if cores <= 4 else cores // 2
