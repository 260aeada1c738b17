"""An aligner that runs a transformers model inside the proxy's process, on CPU or CUDA.

The event loop only queues and waits: encoding, forward passes and decoding happen in one thread
(`worker`, `local_engine`), a batch at a time, with the draft verified instead of generated
(`decoding`).
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from stream_aligner_proxy.aligners import checkpoint as checkpoints
from stream_aligner_proxy.aligners.decoding import Method
from stream_aligner_proxy.aligners.local_engine import Load, LocalEngine, Options
from stream_aligner_proxy.aligners.options import MaxNew, Sampling, check
from stream_aligner_proxy.aligners.queueing import Place, Queue
from stream_aligner_proxy.aligners.worker import Job, Worker
from stream_aligner_proxy.core.errors import ConfigError, ReviewError, Unreviewable
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import Review, Scope, Verdict


class TransformersAligner:
    """Reviews with a local checkpoint.

    `path`: a local directory as `save_pretrained` writes it. `adapter`: a directory with a LoRA
    adapter for it, as PEFT writes it. `profile`: the prompt profile, by default the one in the
    adapter's or the checkpoint's `training_config.json`. `device`: `auto`, `cpu`, `cuda`,
    `cuda:1`. `dtype`: `auto` (bfloat16 on CUDA, float32 on CPU), `bfloat16`,
    `float16`, `float32`, or `bf16`, `fp16`, `fp32`. `window`: tokens
    of prompt and revision together, at most the model's own. `max_batch`: reviews decoded
    together. `queue`: reviews waiting or running; more wait for a place. `timeout`: seconds from
    the call to the verdict, the wait included; None for no limit. `max_new_factor` and
    `max_new_extra`: a revision has at most factor x draft + extra tokens. `threads`: torch's
    threads for one operation, for the whole process; by default one up to four cores (more only
    steal from the event loop), else half the cores. `prefix_cache_tokens`: how many tokens of
    earlier prompts stay cached; 0 for none. `prefill`: read what is known of a coming review when
    there is nothing else to do. `method`: `greedy` switches the draft off. `temperature`, `top_k`,
    `top_p`, `seed`: draw the revision's tokens instead of taking the best; a reviewer should not.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        adapter: str | Path | None = None,
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
        prefill: bool = True,
        method: Method = "verify",
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        load: Load | None = None,
    ) -> None:
        check(profile, max_batch=max_batch, queue=queue, threads=threads)
        if method not in ("verify", "greedy"):
            raise ConfigError(f"aligner.method: {method!r}; known are verify, greedy")
        path = Path(path)
        lora = Path(adapter) if adapter is not None else None
        self.name = name or path.name
        self._engine = LocalEngine(
            load or (lambda: checkpoints.load(path, adapter=lora, device=device, dtype=dtype)),
            Options(
                profile=profile,
                window=window,
                max_batch=max_batch,
                max_new=MaxNew(max_new_factor, max_new_extra),
                threads=threads or _threads(),
                prefix_cache_tokens=prefix_cache_tokens,
                method=method,
                sampling=Sampling(temperature, top_k, top_p, seed),
            ),
        )
        self._worker = Worker(self._engine, f"aligner-{self.name}")
        self.queue = Queue(queue, at_once=False)
        self._timeout = timeout
        self._prefill = prefill and prefix_cache_tokens > 0
        self._started = self._loaded = False

    @property
    def scopes(self) -> frozenset[Scope]:
        """What the profile can judge; known after `start`."""
        return self._engine.scopes

    @property
    def strengths(self) -> tuple[float, float]:
        """Without a keep token there is nothing that could be made less likely."""
        return self._engine.strengths

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
        if self._prefill and self.ready and review.scope in self.scopes:
            self._worker.expect(review)

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """The verdict. Raises `ReviewError`, also when the deadline passes."""
        if not self._started:
            raise ReviewError("the aligner is not started")
        if review.scope not in self.scopes:
            raise Unreviewable(f"the aligner's profile cannot review a {review.scope}")
        try:
            async with asyncio.timeout(self._timeout):
                async with self.queue.place() as place:
                    return await self._run(review, progress, place)
        except TimeoutError:
            raise ReviewError(f"the aligner took longer than {self._timeout} s") from None

    async def _run(self, review: Review, progress: Progress | None, place: Place) -> Verdict:
        job = Job(review, asyncio.get_running_loop(), progress, place)
        self._worker.submit(job)
        try:
            return await job.future
        finally:
            self._worker.withdraw(job)

    async def close(self) -> None:
        """Fail what is unfinished and end the thread."""
        await asyncio.to_thread(self._worker.close)


def _threads() -> int:
    cores = os.cpu_count() or 1
    return 1 if cores <= 4 else cores // 2
