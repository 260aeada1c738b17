"""An aligner that another server runs: vLLM, SGLang, or whatever has `/v1/completions`.

The way of a review: wait for a place (`queue`), fit and encode it here, choose a server
(`remote_pool`), send token ids and read the answer as it is streamed (`remote_asking`), judge it as
the in-process engine does (`framing`). What fails before an answer has begun is asked again, at
another server where there is one.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.framing import Framed, frame, sample
from stream_aligner_proxy.aligners.options import MaxNew, Sampling, check
from stream_aligner_proxy.aligners.queueing import Queue
from stream_aligner_proxy.aligners.remote_asking import Asking
from stream_aligner_proxy.aligners.remote_pool import MARGIN, Pool
from stream_aligner_proxy.aligners.remote_prefill import Prefiller
from stream_aligner_proxy.aligners.remote_probe import introduce
from stream_aligner_proxy.aligners.remote_server import BrokeOff, Server, Unanswered, new_client
from stream_aligner_proxy.aligners.remote_wire import Refused
from stream_aligner_proxy.aligners.vocabulary import (
    DEFAULT_WINDOW,
    Vocabulary,
    choose_profile,
    load_vocabulary,
)
from stream_aligner_proxy.core.errors import ConfigError, ReviewError, Unreviewable
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import NEUTRAL, Review, Scope, Verdict

log = logging.getLogger(__name__)

_CLOSED = "the aligner is closed"
ATTEMPTS = 4
BACKOFF_SECONDS = 0.1  # before the second round over the servers; doubled for each further one
# Encoding took 0.08 ms for a short review, 0.3 ms more for every 1000 characters, measured on a
# small CPU: what is longer than this goes to a thread.
_INLINE_CHARS = 2000


class RemoteAligner:
    """Reviews with a model that a server runs.

    `path`: a folder with the tokenizer's files: the checkpoint, or a copy without weights. `urls`:
    the servers' base addresses, `/v1` included; all must serve the same model. `model`: its name
    there, by default the first that a server lists. `api_key` is sent to all. `profile`, `window`,
    `queue`, `timeout`, `max_new_factor` and `max_new_extra` mean what they mean for
    `TransformersAligner`; the window is at most what every server allows. `temperature`, `top_p`,
    `top_k`, `seed`: how the server draws; by default it does not. `prefill`: have a long prefix
    read ahead (`remote_prefill`).
    Raises `ConfigError` for settings that make no sense.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        urls: Sequence[str] = (),
        name: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        profile: str | None = None,
        window: int | None = None,
        queue: int = 64,
        timeout: float | None = 30.0,
        max_new_factor: float = 2.0,
        max_new_extra: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        prefill: bool = False,
    ) -> None:
        if not urls:
            raise ConfigError("aligner.urls: backend remote needs at least one")
        if len(set(urls)) < len(urls):
            raise ConfigError("aligner.urls: holds the same address twice")
        check(profile, queue=queue)
        self._path = Path(path)
        self.name = name or model or self._path.name
        self._model = model
        self._profile = profile
        self._set_window = window
        self._timeout = timeout
        self.queue = Queue(queue)
        self._max_new = MaxNew(max_new_factor, max_new_extra)
        self._sampling = Sampling(temperature, top_k, top_p, seed)
        self._prefiller = Prefiller(self._read_ahead) if prefill else None
        # For each review one, one to read ahead for it, and for each server one to watch it.
        self._client = new_client(2 * queue + len(urls))
        self._pool = Pool(
            [
                Server(self._client, url, f"urls[{number}]", api_key)
                for number, url in enumerate(urls)
            ],
            self._introduce,
        )
        self._vocabulary: Vocabulary
        self._encoder: Encoder
        self._started = self._closed = False

    @property
    def scopes(self) -> frozenset[Scope]:
        """What the profile can judge; known after `start`."""
        return self._encoder.profile.scopes if self._started else frozenset()

    @property
    def strengths(self) -> tuple[float, float]:
        """All, if the profile has a keep token and no server is known to hide its chances."""
        if not self._started or self._encoder.keep is None:
            return NEUTRAL, NEUTRAL
        known = (server.abilities for server in self._pool.servers if server.abilities)
        able = all(abilities.chances for abilities in known)
        return (0.0, 1.0) if able else (NEUTRAL, NEUTRAL)

    @property
    def ready(self) -> bool:
        """Whether a server is up."""
        return self._started and not self._closed and self._pool.ready

    async def start(self) -> None:
        """Load the tokenizer and get to know the servers; those that are down may come later.

        Raises `ConfigError` for what can never work.
        """
        if self._started:
            return
        self._vocabulary = await asyncio.to_thread(load_vocabulary, self._path)
        profile = choose_profile(self._profile, self._vocabulary)
        self._encoder = Encoder(self._vocabulary.tokenizer, profile, self._vocabulary.ends)
        self._started = True
        await self._pool.start()
        self._sample()

    def expect(self, review: Review) -> None:
        """With `prefill`: have a server read the prefix, if much of it is new."""
        if self._prefiller is not None and self.ready and review.scope in self.scopes:
            self._prefiller.offer(review)

    async def review(self, review: Review, progress: Progress | None = None) -> Verdict:
        """The verdict. Raises `ReviewError`, also when the deadline passes."""
        if not self._started:
            raise ReviewError("the aligner is not started")
        if self._closed:
            raise ReviewError(_CLOSED)
        if review.scope not in self.scopes:
            raise Unreviewable(f"the aligner's profile cannot review a {review.scope}")
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                async with self.queue.place():
                    framed = await self._frame(review)
                    asking = Asking(self._encoder, review, framed, self._sampling, progress)
                    if self._prefiller is not None:
                        self._prefiller.seen(asking.key, review)
                    while (verdict := await self._answer(asking, deadline.when())) is None:
                        pass  # the dial has chosen the first token: asked again, it cannot anew
                    return verdict
        except TimeoutError:
            raise ReviewError(f"the aligner took longer than {self._timeout} s") from None

    async def close(self) -> None:
        """Stop watching and close every connection."""
        self._closed = True
        if self._prefiller is not None:
            await self._prefiller.close()
        await self._pool.close()
        await self._client.aclose()

    # --- before asking -----------------------------------------------------------------------

    async def _introduce(self, server: Server) -> None:
        known = await introduce(server, self._encoder, self._sample().prompt, self._model)
        server.model, server.window, server.abilities = known.model, known.window, known.abilities

    def _sample(self) -> Framed:
        """Raises `ConfigError` where not even a small review fits the window."""
        try:
            return self._framed(sample(self._encoder.profile))
        except ReviewError as error:
            raise ConfigError(f"aligner.window: {self._window} tokens: {error}") from error

    @property
    def _window(self) -> int:
        """What fits everywhere."""
        told = [server.window for server in self._pool.servers]
        known = [size for size in (self._set_window, self._vocabulary.window, *told) if size]
        return min(known, default=DEFAULT_WINDOW)

    def _framed(self, review: Review) -> Framed:
        return frame(self._encoder, review, self._window, self._max_new)

    async def _frame(self, review: Review) -> Framed:
        chars = len(review.committed) + len(review.sentence)
        chars += sum(len(turn.text) for turn in review.conversation)
        if chars <= _INLINE_CHARS:
            return self._framed(review)
        return await asyncio.to_thread(self._framed, review)

    async def _read_ahead(self, review: Review) -> None:
        review = Review(review.conversation, review.committed, review.sentence, review.scope)
        asking = Asking(self._encoder, review, await self._frame(review), self._sampling)
        server = self._pool.choose(asking.key)
        if server is None or server.running > MARGIN // 2:
            return
        async with asyncio.timeout(self._timeout):
            async with server.complete({**asking.body(server), "max_tokens": 1}) as pieces:
                async for _ in pieces:
                    pass

    # --- asking ------------------------------------------------------------------------------

    async def _answer(self, asking: Asking, deadline: float | None) -> Verdict | None:
        """Ask until a server answers; None where the dial says to ask once more."""
        tried: set[Server] = set()
        failures = 0
        while True:
            if self._closed:
                raise ReviewError(_CLOSED)
            server = await self._choose(asking.key, tried, failures, deadline)
            try:
                async with server.complete(asking.body(server), asking.headers) as pieces:
                    return await asking.read(pieces, server)
            except Refused as refusal:
                # The client is not told what it said: it may be about another's text.
                log.warning("aligner.%s: %s: %s", server.label, refusal, refusal.detail)
                raise
            except BrokeOff:
                self._pool.doubt(server)
                raise
            except Unanswered as error:
                self._pool.failed(server, error)
                tried.add(server)
                failures += 1
                if failures == ATTEMPTS:
                    raise

    async def _choose(
        self, key: bytes, tried: set[Server], failures: int, deadline: float | None
    ) -> Server:
        """The next server to try; waits before a second round over those that there are."""
        if server := self._pool.choose(key, tried):
            return server
        wait = self._pool.rest()
        if tried:
            # Spread out, so that reviews that failed together do not come back together.
            wait = max(wait, BACKOFF_SECONDS * 2**failures * random.uniform(0.5, 1.0))
        if deadline is not None and asyncio.get_running_loop().time() + wait >= deadline:
            raise ReviewError("the aligner's servers are not available")
        await asyncio.sleep(wait)
        tried.clear()
        server = self._pool.choose(key) or self._pool.last_resort(key)
        if server is None:
            raise ReviewError("none of the aligner's servers has been up yet")
        return server
