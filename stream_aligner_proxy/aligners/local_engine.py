"""The model side of a review: fits, encodes, decodes and reads. Lives in the worker's thread."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from stream_aligner_proxy.aligners.checkpoint import Checkpoint
from stream_aligner_proxy.aligners.choosing import bias_of
from stream_aligner_proxy.aligners.decoding import Batch, Decoder, Method
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.framing import foreseen, frame, judge, sample
from stream_aligner_proxy.aligners.kv import Prefixes
from stream_aligner_proxy.aligners.network import Network, takes_back
from stream_aligner_proxy.aligners.options import MaxNew, Sampling, seed_for
from stream_aligner_proxy.aligners.pacing import pass_cost
from stream_aligner_proxy.aligners.row import Row
from stream_aligner_proxy.aligners.vocabulary import choose_profile
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import NEUTRAL, Review, Scope, Verdict

log = logging.getLogger(__name__)

Load = Callable[[], Checkpoint]


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one engine; see `TransformersAligner` for their meaning."""

    profile: str | None
    window: int | None
    max_batch: int
    max_new: MaxNew
    threads: int
    prefix_cache_tokens: int
    method: Method
    sampling: Sampling


class _Reading(NamedTuple):
    """How many tokens ahead are worth a pass, and how many one pass may have."""

    least: int
    most: int


class LocalEngine:
    """The model side of a review; lives in the worker's thread (see `worker.Engine`)."""

    scopes: frozenset[Scope] = frozenset()
    strengths: tuple[float, float] = (NEUTRAL, NEUTRAL)

    def __init__(self, load: Load, options: Options) -> None:
        self._load = load
        self._options = options
        self._window = options.window or 0
        self._prefixes = Prefixes(options.prefix_cache_tokens)
        self._reading = _Reading(0, 0)
        self.max_rows = options.max_batch
        self._encoder: Encoder
        self._decoder: Decoder

    def load(self) -> None:
        options = self._options
        torch.set_num_threads(options.threads)
        checkpoint = self._load()
        profile = choose_profile(options.profile, checkpoint)
        self._window = min(self._window or checkpoint.window, checkpoint.window)
        self._encoder = Encoder(checkpoint.tokenizer, profile, checkpoint.ends)
        network = Network(checkpoint.model)
        self.scopes = profile.scopes
        self.strengths = (0.0, 1.0 if self._encoder.keep is not None else NEUTRAL)
        if not takes_back(network, 1):
            raise ConfigError(
                "aligner.path: this model's cache cannot take back a guess (it keeps a state, or"
                " does not run at all; see the log): use another architecture"
            )
        if self.max_rows > 1 and not takes_back(network, 2):
            log.warning("this architecture cannot be batched here; reviews run one at a time")
            self.max_rows = 1
        cost = pass_cost(network)
        # Less than half a pass is not worth a pass of its own; more than a few would hold up a
        # review that comes in the middle of it.
        self._reading = _Reading(max(8, int(cost / 2)), max(64, int(4 * cost)))
        self._decoder = Decoder(
            network,
            self._encoder.ends,
            keep=self._encoder.keep,
            controls=self._encoder.special,
            meaningless=self._encoder.meaningless,
            sampling=options.sampling,
            method=options.method,
            prefixes=self._prefixes,
            pass_cost=cost,
        )
        log.info("a pass of the aligner costs as much as %.0f tokens of it", cost)
        try:
            self._warm_up()
        except ReviewError as error:
            raise ConfigError(f"aligner.window: {self._window} tokens: {error}") from error

    def prepare(self, review: Review) -> Row:
        """Fit the review into the window and encode it. Raises `ReviewError` where it cannot."""
        framed = frame(self._encoder, review, self._window, self._options.max_new)
        how = self._options.sampling
        seed = 0
        if how.temperature > 0:
            own = random.getrandbits(64) if how.seed is None else how.seed
            seed = seed_for(own, framed.prompt)
        return Row(
            framed.prompt, framed.draft, framed.room, bias=bias_of(review.strength), seed=seed
        )

    def begin(self, rows: list[Row]) -> list[Batch]:
        return self._decoder.begin_apart(rows)

    def step(self, batch: Batch) -> list[Row]:
        return self._decoder.step(batch)

    def beginning(self, row: Row) -> str:
        return self._encoder.beginning(row.output)

    def foresee(self, review: Review) -> bool:
        """Read the prompt as far as it can be known, in one pass; whether more is to be read."""
        known = foreseen(self._encoder, review, self._window, self._options.max_new)
        least, most = self._reading
        return self._decoder.prefill(known, least=least, most=most)

    def read(self, row: Row, review: Review) -> Verdict:
        """The verdict of a finished row. Raises `ReviewError` for output nobody can trust."""
        if row.finished == "broken":
            raise ReviewError("the aligner's model gave logits that are no numbers")
        revision = self._encoder.revision(row.output, finished=row.finished == "end")
        verdict = judge(self._encoder.profile, revision, review)
        return Verdict(verdict.replacement, verdict.end, len(row.prompt), len(row.output))

    def recover(self) -> None:
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _warm_up(self) -> None:
        """One small review, so that the first real one does not pay for lazy initialisation."""
        row = self.prepare(sample(self._encoder.profile))
        row.max_new = 2
        [batch] = self.begin([row])
        while batch.lanes:
            self.step(batch)
        self._prefixes.clear()
