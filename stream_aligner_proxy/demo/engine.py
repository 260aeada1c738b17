"""The embedded upstream's engine: one thread that steps every running request in turn.

Requests are stepped one by one, each with a cache of its own, not as a batch: for a model of a few
million parameters a step is mostly overhead, and a reply then never depends, not even in its last
bit, on what else is running. So a seed gives the same reply under any load.

    submit ─► waiting ─► running ─(one token a turn)─► stop | length | cancelled
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.demo.chat_tokens import ChatTokens, TextDecoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 takes the likeliest."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New text, the tokens generated so far, and at the end why it ended.

    `finish` is "stop", "length", or "error" where the model failed.
    """

    text: str
    tokens: int
    finish: str | None = None


class Job:
    """One request. `deliver` is called on the engine's thread, once a token at most."""

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, deliver: Callable[[Piece], None]
    ) -> None:
        self.prompt = list(prompt)
        self.sampling = sampling
        self.deliver = deliver
        self.cancelled = False
        self.ready_at = 0.0


class Engine:
    """A model directory, loaded. `tokens_per_second` slows each request down to that pace."""

    def __init__(
        self, path: Path, *, threads: int = 1, tokens_per_second: float | None = None
    ) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(f"model: no model in {path}")
        self.tokens = ChatTokens(path)
        load: Any = AutoModelForCausalLM.from_pretrained
        self._model = load(path, dtype=torch.float32, local_files_only=True).eval()
        self.context: int = self._model.config.max_position_embeddings
        self.parameters: int = sum(p.numel() for p in self._model.parameters())
        self._stop_ids = _stop_ids(self._model, self.tokens.eos)
        self._threads = threads
        self._interval = 1 / tokens_per_second if tokens_per_second else 0.0
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._jobs)

    def start(self) -> None:
        """Start the thread; again after a `close`, if need be."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="demo-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Drop all requests and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a request within one token. Does nothing if it is over."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        steppers: dict[Job, _Stepper] = {}
        remembered = _Prefixes()
        while True:
            with self._changed:
                for job in [job for job in self._jobs if job.cancelled or self._closing]:
                    self._jobs.remove(job)
                    if left := steppers.pop(job, None):
                        remembered.put(left)
                if self._closing:
                    return
                now = time.monotonic()
                due = [job for job in self._jobs if job.ready_at <= now]
                if not due:
                    soonest = min((job.ready_at for job in self._jobs), default=None)
                    self._changed.wait(None if soonest is None else soonest - now)
                    continue
            for job in due:
                if job.cancelled:
                    continue
                if job not in steppers:
                    steppers[job] = _Stepper(self._model, self.tokens, self._stop_ids, job)
                    remembered.use(steppers[job])
                piece = self._step(steppers[job])
                if piece.finish is not None:
                    with self._changed:
                        self._jobs.remove(job)
                    remembered.put(steppers.pop(job))
                if piece.text or piece.finish is not None:
                    job.deliver(piece)
                # From when it was due, so that a late step does not lower the pace.
                job.ready_at = (job.ready_at or now) + self._interval

    def _step(self, stepper: "_Stepper") -> Piece:
        try:
            return stepper.step()
        except Exception:  # top level of the thread: the other requests go on
            log.exception("a step of the model failed")
            return Piece("", stepper.count, "error")


class _Stepper:
    """One running request: its cache, its dice, and the text that may still become a stop."""

    def __init__(self, model: Any, tokens: ChatTokens, stop_ids: frozenset[int], job: Job) -> None:
        self._model = model
        self._stop_ids = stop_ids
        self._sampling = job.sampling
        self.todo = list(job.prompt)  # ids not yet in the cache
        self.seen: list[int] = []  # ids in the cache
        new_cache: Any = DynamicCache
        self.cache = new_cache(config=model.config)
        self._decoder: TextDecoder = tokens.decoder()
        self._stops = StopScanner(job.sampling.stop)
        seed = secrets.randbits(63) if job.sampling.seed is None else job.sampling.seed
        self._dice = torch.Generator().manual_seed(seed & (2**63 - 1))
        self.count = 0

    @torch.inference_mode()
    def step(self) -> Piece:
        """Generate one token."""
        output = self._model(
            input_ids=torch.tensor([self.todo]),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = pick(output.logits[0, -1], self._sampling, self._dice)
        self.count += 1
        self.seen += self.todo
        self.todo = [token]
        over = token in self._stop_ids
        text = self._stops.feed("" if over else self._decoder.step(token))
        finish = "stop" if over or self._stops.hit else None
        if finish is None and self.count >= self._sampling.max_tokens:
            finish = "length"
        if finish is not None and not self._stops.hit:
            text += self._stops.feed(self._decoder.flush())
            text += self._stops.flush()
        return Piece(text, self.count, finish)


class _Prefixes:
    """Caches of the last requests: one that continues another starts where they part.

    What a production server's prefix cache does for a reply that is continued from corrected text.
    """

    def __init__(self, most: int = 8) -> None:
        self._over: deque[_Stepper] = deque(maxlen=most)

    def put(self, stepper: _Stepper) -> None:
        self._over.append(stepper)

    def use(self, stepper: _Stepper) -> None:
        """Give a new request the cache with the longest common beginning; no other has it then."""
        best, shared = None, 0
        for over in self._over:
            same = 0
            # The last id is run again in any case: its logits are not in the cache.
            for ours, theirs in zip(stepper.todo[:-1], over.seen, strict=False):
                if ours != theirs:
                    break
                same += 1
            if same > shared:
                best, shared = over, same
        if best is not None:
            self._over.remove(best)
            if beyond := len(best.seen) - shared:
                best.cache.crop(-beyond)
            stepper.cache = best.cache
            stepper.seen, stepper.todo = stepper.todo[:shared], stepper.todo[shared:]


class StopScanner:
    """Passes text on, but never a stop string nor what may still become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        if not self._stops or self.hit:
            return "" if self.hit else text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def pick(logits: torch.Tensor, sampling: Sampling, dice: torch.Generator) -> int:
    """Choose an id from the logits (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        chances, ids = chances.sort(descending=True)
        # The first id always stays: before it the sum is 0.
        chances = chances * (chances.cumsum(-1) - chances < sampling.top_p)
        return int(ids[torch.multinomial(chances, 1, generator=dice)])
    return int(torch.multinomial(chances, 1, generator=dice))


def _stop_ids(model: Any, eos: int | None) -> frozenset[int]:
    """Every id that ends a reply, by the model's and the tokenizer's configuration."""
    told = model.generation_config.eos_token_id
    ids = told if isinstance(told, list) else [told]
    return frozenset(token for token in (*ids, eos) if token is not None)
