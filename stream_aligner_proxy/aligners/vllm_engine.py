"""An aligner on vLLM, in-process: `AsyncLLM`, whose engine is a child process on CPU or GPU.

vLLM batches, schedules and keeps the prefix cache; this module puts a review to it as token ids,
reads the answer's ids, and answers for deadlines, bounds and failures. Prompts and answers never
cross as text, so nothing in them can become a delimiter (rule 8).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, get_args

from stream_aligner_proxy.aligners.dial import decide
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.framing import Framed, foreseen, frame, judge, sample, shared
from stream_aligner_proxy.aligners.options import MaxNew, Sampling, check, seed_for
from stream_aligner_proxy.aligners.queueing import Queue
from stream_aligner_proxy.aligners.telling import Telling
from stream_aligner_proxy.aligners.vllm_launch import Launch
from stream_aligner_proxy.aligners.vllm_plan import Draft, Plan, load, marks_of, rank_of
from stream_aligner_proxy.aligners.vocabulary import DEFAULT_WINDOW, choose_profile
from stream_aligner_proxy.core.errors import ConfigError, ReviewError, Unreviewable
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import NEUTRAL, Review, Scope, Verdict

# How many first tokens are asked for where the dial is not neutral. vLLM's own limit.
FIRST_TOKENS = 20
WATCH_SECONDS = 0.2
# Tokens of a prompt that are worth reading before they are needed: vLLM keeps whole blocks.
READ_AHEAD = 64

log = logging.getLogger(__name__)


class VllmAligner:
    """Reviews with a checkpoint that vLLM runs.

    `path`, `adapter`, `profile`, `window`, `queue`, `timeout`, `max_new_factor`, `max_new_extra`,
    `prefill`, `temperature`, `top_k`, `top_p`, `seed`: as for `TransformersAligner`; `dtype` too
    (`auto`: float32 on a CPU, else bfloat16). `max_batch`: sequences that vLLM decodes together.
    `threads`: of the engine on a CPU, bound to no core; by default vLLM takes all cores but one and
    binds itself to them. `draft`: what the engine guesses ahead: `sentence`, the reviewed sentence
    itself, for profiles that mark it with tokens of their own; `ngram`, vLLM's lookup in the
    prompt; `none`. By default the first of them that the profile can. `draft_tokens`: how many at
    once. `gpu_memory`: the share of the GPU's memory that vLLM may take. `kv_cache_gib`: instead of
    a share, GiB for the cache; on a CPU 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        adapter: str | Path | None = None,
        profile: str | None = None,
        dtype: str = "auto",
        window: int | None = None,
        max_batch: int = 16,
        queue: int = 64,
        timeout: float | None = 30.0,
        max_new_factor: float = 2.0,
        max_new_extra: int = 64,
        threads: int | None = None,
        prefill: bool = True,
        draft: Draft | None = None,
        draft_tokens: int = 32,
        gpu_memory: float | None = None,
        kv_cache_gib: float | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if find_spec("vllm") is None:
            # The package itself takes seconds to import: `vllm_launch` does, when it is needed.
            raise ConfigError(
                "aligner.backend: vllm needs the package 'vllm', which is not installed"
            )
        check(profile, max_batch=max_batch, queue=queue, threads=threads)
        if not 1 <= draft_tokens <= 128:
            raise ConfigError(f"aligner.draft_tokens: must be 1 to 128, not {draft_tokens}")
        if draft is not None and draft not in get_args(Draft):
            known = ", ".join(get_args(Draft))
            raise ConfigError(f"aligner.draft: {draft!r}; known are {known}")
        self._path = Path(path)
        self._adapter = Path(adapter) if adapter is not None else None
        self.name = name or self._path.name
        self.scopes: frozenset[Scope] = frozenset()
        self.strengths = (NEUTRAL, NEUTRAL)
        self._profile, self._dtype = profile, dtype
        self._window = window
        self._max_batch = max_batch
        self._max_new = MaxNew(max_new_factor, max_new_extra)
        self._threads = threads
        self._draft, self._draft_tokens = draft, draft_tokens
        self._memory = (gpu_memory, kv_cache_gib)
        self._sampling = Sampling(temperature, top_k, top_p, seed)
        self.queue = Queue(queue)
        self._timeout = timeout
        self._numbers = count()
        self._running: set[str] = set()
        self._prefill = prefill
        self._reading: asyncio.Task[None] | None = None
        self._read: tuple[int, ...] = ()
        self._encoder: Encoder
        self._launch: Launch | None = None
        self._engine: Any = None
        self._lora: Any = None

    @property
    def ready(self) -> bool:
        """Whether the engine is up."""
        return self._engine is not None and not self._engine.errored

    async def start(self) -> None:
        """Start the engine and warm it up. Raises `ConfigError` for what can never work."""
        if self._launch is not None:
            return
        plan = await asyncio.to_thread(self._plan)
        self._launch = launch = Launch(plan)
        started = asyncio.wrap_future(launch.engine)
        while not started.done():
            await asyncio.wait({started}, timeout=WATCH_SECONDS)
            launch.watch()
        self._engine = await started
        await self._warm_up()

    def expect(self, review: Review) -> None:
        """Read what is known of a coming review into vLLM's cache, when there is nothing to do."""
        idle = not self._running and (self._reading is None or self._reading.done())
        if self._prefill and idle and self.ready and review.scope in self.scopes:
            self._reading = asyncio.create_task(self._read_ahead(review))

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """The verdict. Raises `ReviewError`, also when the deadline passes."""
        if self._engine is None:
            raise ReviewError("the aligner is not started")
        if review.scope not in self.scopes:
            raise Unreviewable(f"the aligner's profile cannot review a {review.scope}")
        try:
            async with asyncio.timeout(self._timeout):
                async with self.queue.place():
                    return await self._review(review, progress)
        except TimeoutError:
            raise ReviewError(f"the aligner took longer than {self._timeout} s") from None

    async def close(self) -> None:
        """Fail what is unfinished and end the engine's processes."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        engine, self._engine = self._engine, None
        if engine is not None and not engine.errored:
            # Their outputs end, so whoever waits for one is told.
            await engine.abort(sorted(self._running))
        if self._launch is not None:
            await asyncio.to_thread(self._launch.close)
            self._launch = None

    def _plan(self) -> Plan:
        """Read the checkpoint's folder. Raises `ConfigError`."""
        vocabulary = load(self._path, self._adapter)
        profile = choose_profile(self._profile, vocabulary)
        self._encoder = encoder = Encoder(vocabulary.tokenizer, profile, vocabulary.ends)
        self.scopes = profile.scopes
        self.strengths = (0.0, 1.0) if encoder.keep is not None else (NEUTRAL, NEUTRAL)
        longest = vocabulary.window or DEFAULT_WINDOW
        self._window = window = min(self._window or longest, longest)
        marks = marks_of(encoder)
        draft = self._draft or ("ngram" if marks is None else "sentence")
        if draft == "sentence" and marks is None:
            raise ConfigError(
                f"aligner.draft: profile {profile.name} does not mark the sentence with tokens of"
                " its own; use ngram or none"
            )
        gpu_memory, kv_cache_gib = self._memory
        return Plan(
            self._path,
            self._dtype,
            window,
            self._max_batch,
            draft,
            self._draft_tokens,
            marks,
            rank=rank_of(self._adapter) if self._adapter is not None else None,
            threads=self._threads,
            gpu_memory=gpu_memory,
            kv_cache_gib=kv_cache_gib,
        )

    async def _warm_up(self) -> None:
        """One small review, so that the first real one does not pay for lazy initialisation."""
        if self._adapter is not None:
            from vllm.lora.request import LoRARequest  # noqa: PLC0415

            self._lora = LoRARequest("aligner", 1, str(self._adapter))
        try:
            prompt = self._framed(sample(self._encoder.profile)).prompt
            async with aclosing(
                self._outputs(prompt, self._parameters(4, prompt, parts=False))
            ) as outputs:
                async for _ in outputs:
                    pass
        except ReviewError as error:
            key = "window" if self._adapter is None else "adapter"
            raise ConfigError(f"aligner.{key}: the first review failed: {error}") from error

    def _framed(self, review: Review) -> Framed:
        assert self._window is not None
        return frame(self._encoder, review, self._window, self._max_new)

    async def _review(self, review: Review, progress: Progress | None) -> Verdict:
        encoder = self._encoder
        # Encoding a long conversation takes milliseconds that other replies must not wait.
        framed = await asyncio.to_thread(self._framed, review)
        prompt = framed.prompt
        ids: list[int] = []
        if review.strength != NEUTRAL and encoder.keep is not None:
            ids.append(await self._first(prompt, encoder.keep, review.strength))
        finished = not encoder.ends.isdisjoint(ids)
        if not finished:
            telling = Telling(progress)
            room = framed.room - len(ids)
            parameters = self._parameters(room, prompt, parts=progress is not None)
            async with aclosing(self._outputs((*prompt, *ids), parameters)) as outputs:
                async for output in outputs:
                    ids.extend(output.token_ids)
                    finished = output.finish_reason == "stop"
                    if telling.due(len(ids)):
                        telling.tell(encoder.beginning(ids), len(ids))
        revision = encoder.revision(ids, finished=finished)
        verdict = judge(encoder.profile, revision, review)
        return Verdict(verdict.replacement, verdict.end, len(prompt), len(ids))

    async def _read_ahead(self, review: Review) -> None:
        """One token of the known beginning, where enough of it is new: vLLM has no bare prefill."""
        try:
            known = await asyncio.to_thread(self._known, review)
            if len(known) - shared(known, self._read) < READ_AHEAD:
                return
            self._read = known
            parameters = self._parameters(1, known, parts=False)
            async with aclosing(self._outputs(known, parameters)) as outputs:
                async for _ in outputs:
                    pass
        except ReviewError as error:
            # It was a hint; the review itself will tell.
            log.debug("the beginning of a review could not be read ahead: %s", error)

    def _known(self, review: Review) -> tuple[int, ...]:
        assert self._window is not None
        return foreseen(self._encoder, review, self._window, self._max_new)

    async def _first(self, prompt: tuple[int, ...], keep: int, strength: float) -> int:
        """The token that the dialled answer begins with. vLLM biases no logits beside a draft, so
        one step tells the chances, and the rest is generated after what is decided."""
        from vllm import SamplingParams  # noqa: PLC0415

        parameters = SamplingParams(
            max_tokens=1, temperature=0, logprobs=FIRST_TOKENS, detokenize=False
        )
        chances: dict[int, float] = {}
        async with aclosing(self._outputs(prompt, parameters)) as outputs:
            async for output in outputs:
                for token, one in output.logprobs[0].items():
                    # Dialled far enough, the second best token may well be a delimiter.
                    if token not in self._encoder.meaningless:
                        chances[token] = one.logprob
        return decide(chances, keep, strength)

    def _parameters(self, room: int, prompt: tuple[int, ...], *, parts: bool) -> Any:
        """vLLM's sampling parameters; `parts`: outputs come as they are written."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        how = self._sampling
        seed = how.seed
        if seed is not None:
            seed = seed_for(seed, prompt) & (2**63 - 1)
        return SamplingParams(
            max_tokens=room,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            seed=seed,
            stop_token_ids=sorted(self._encoder.ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if parts else RequestOutputKind.FINAL_ONLY,
        )

    async def _outputs(self, prompt: tuple[int, ...], parameters: Any) -> AsyncGenerator[Any, None]:
        """The completion as it comes. Cancelling aborts it. Raises `ReviewError`."""
        from vllm.inputs import tokens_input  # noqa: PLC0415
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # noqa: PLC0415

        engine, number = self._engine, f"review-{next(self._numbers)}"
        if engine is None:
            raise ReviewError("the aligner is closed")
        self._running.add(number)
        try:
            outputs = engine.generate(
                tokens_input(list(prompt)), parameters, number, lora_request=self._lora
            )
            async with aclosing(outputs):
                async for output in outputs:
                    if output.outputs[0].finish_reason == "abort":
                        raise ReviewError("the aligner was closed during the review")
                    yield output.outputs[0]
        except EngineDeadError:
            raise ReviewError("vLLM's engine is dead") from None
        except (EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise Unreviewable(f"vLLM refused the review: {cause}") from error
        finally:
            self._running.discard(number)
