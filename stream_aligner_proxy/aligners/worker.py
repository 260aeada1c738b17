"""The thread that owns a model: takes waiting reviews, runs them in batches, hands results back.

1. `submit` puts a job in the queue (its bound is kept by the caller, see `TransformersAligner`).
2. Between two steps the thread drops what was withdrawn and takes in what waits, up to `max_rows`.
   New rows make their first pass on their own, those of like length together (most finish in it);
   the others join the batch.
3. What is final of an unfinished row is told to its event loop, word by word.
4. A finished row is read into a verdict and handed over.
5. With nothing else to do, the beginnings of reviews that may come are read (`expect`), a short
   pass at a time.

A failure ends the jobs it belongs to with `ReviewError` and never the thread.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from stream_aligner_proxy.aligners.decoding import Batch
from stream_aligner_proxy.aligners.queueing import Place
from stream_aligner_proxy.aligners.row import Row
from stream_aligner_proxy.aligners.telling import Telling
from stream_aligner_proxy.core.errors import ReviewError, Unreviewable
from stream_aligner_proxy.core.ports import Progress
from stream_aligner_proxy.core.records import Review, Verdict

log = logging.getLogger(__name__)

CLOSED = "the aligner is closed"

# Replies whose next review may be expected at once; the oldest hints go first.
MAX_EXPECTED = 64


class Job:
    """One review on its way through the thread. `withdrawn` may be set from any thread. `place`:
    where it is noted that the thread has taken it in."""

    def __init__(
        self,
        review: Review,
        loop: asyncio.AbstractEventLoop,
        progress: Progress | None = None,
        place: Place | None = None,
    ) -> None:
        self.review = review
        self.place = place
        self.future: asyncio.Future[Verdict] = loop.create_future()
        self.withdrawn = False
        self.telling = Telling(
            None if progress is None else lambda text: self._hand_over(lambda: progress(text))
        )
        self._loop = loop

    def succeed(self, verdict: Verdict) -> None:
        self._hand_over(lambda: self.future.set_result(verdict))

    def fail(self, error: BaseException) -> None:
        self._hand_over(lambda: self.future.set_exception(error))

    def _hand_over(self, deliver: Callable[[], None]) -> None:
        def once() -> None:
            if not self.future.done():
                deliver()

        # The loop may be gone: then nobody waits for the result.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(once)


class Engine(Protocol):
    """What the thread drives. All methods are called from the thread."""

    def load(self) -> None: ...

    @property
    def max_rows(self) -> int: ...

    def prepare(self, review: Review) -> Row: ...

    def begin(self, rows: list[Row]) -> list[Batch]:
        """New rows, in as many batches as their first passes are best run in."""
        ...

    def step(self, batch: Batch) -> list[Row]: ...

    def beginning(self, row: Row) -> str:
        """What is final of the text of an unfinished row."""
        ...

    def foresee(self, review: Review) -> bool:
        """Read the beginning of a review that may come; whether there is more of it to read."""
        ...

    def read(self, row: Row, review: Review) -> Verdict: ...

    def recover(self) -> None:
        """Free what a failed pass may have left behind."""
        ...


class Worker:
    """Runs an `Engine` in its own thread, a daemon: a forgotten `close` cannot hang the exit."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._waiting: deque[Job] = deque()
        self._expected: OrderedDict[int, Review] = OrderedDict()  # by the conversation's id()
        self._running: dict[Row, Job] = {}
        self._batch = Batch.none()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ready: Callable[[BaseException | None], None] = lambda _: None

    def start(self, ready: Callable[[BaseException | None], None]) -> None:
        """Start loading; `ready` is called from the thread with None or what went wrong."""
        self._ready = ready
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken: from the start until `close` or the thread's end."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Queue a job. Raises `ReviewError` after `close`."""
        with self._changed:
            if self._closing:
                raise ReviewError(CLOSED)
            self._expected.pop(id(job.review.conversation), None)
            self._waiting.append(job)
            self._changed.notify()

    def expect(self, review: Review) -> None:
        """Note a review that may come, in place of an earlier note of the same reply."""
        with self._changed:
            # The note holds the conversation, so its id() is nobody else's.
            self._expected[id(review.conversation)] = review
            if len(self._expected) > MAX_EXPECTED:
                self._expected.popitem(last=False)
            self._changed.notify()

    def withdraw(self, job: Job) -> None:
        """Forget a job: at once where it waits, before the next step where it runs."""
        with self._changed:
            job.withdrawn = True
            with suppress(ValueError):
                self._waiting.remove(job)

    def close(self) -> None:
        """End the thread after the pass it is in, and wait for it. Fails what is unfinished."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._engine.load()
        except BaseException as error:  # noqa: BLE001  (the thread's top: `ready` passes it on)
            self._end()
            self._ready(error)
            return
        self._ready(None)
        try:
            while self._take_in():
                self._step(self._batch)
                self._look_ahead()
        except BaseException:
            log.exception("the aligner's thread ended; every review fails from now on")
        finally:
            self._end()

    def _take_in(self) -> bool:
        """Wait for work, drop what was withdrawn, give new jobs their first pass.

        False when the thread shall end.
        """
        self._drop_withdrawn()
        # The event loop takes this lock too: nothing slow may happen under it.
        with self._changed:
            while not (self._closing or self._waiting or self._batch.lanes or self._expected):
                self._changed.wait()
            if self._closing:
                return False
            room = self._engine.max_rows - len(self._batch.lanes)
            jobs = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        now = time.monotonic()
        for job in jobs:
            if job.place is not None:
                job.place.taken_up = now
        rows = [row for job in jobs if (row := self._prepare(job))]
        if rows:
            try:
                fresh = self._engine.begin(rows)
            except Exception as error:  # noqa: BLE001  (any failure ends these jobs only)
                self._broke(rows, error)
                return True
            for batch in fresh:
                self._step(batch)
                self._join(batch)
        return True

    def _prepare(self, job: Job) -> Row | None:
        try:
            row = self._engine.prepare(job.review)
        except ReviewError as error:
            job.fail(error)
        except Exception as error:
            log.exception("a review could not be encoded")
            job.fail(Unreviewable(f"the aligner failed: {type(error).__name__}"))
        else:
            self._running[row] = job
            return row
        return None

    def _join(self, fresh: Batch) -> None:
        try:
            self._batch.absorb(fresh)
        except Exception as error:  # noqa: BLE001  (out of memory; neither side is whole)
            self._broke([*self._batch.rows(), *fresh.rows()], error)
            self._batch = Batch.none()

    def _step(self, batch: Batch) -> None:
        if not batch.lanes:
            return
        rows = batch.rows()
        try:
            finished = self._engine.step(batch)
        except Exception as error:  # noqa: BLE001  (any failure ends this batch only)
            self._broke(rows, error)
            batch.clear()
            return
        for row in batch.rows():
            self._tell(row)
        for row in finished:
            job = self._running.pop(row)
            try:
                job.succeed(self._engine.read(row, job.review))
            except ReviewError as error:
                job.fail(error)
            except Exception as error:
                log.exception("a revision could not be read")
                job.fail(Unreviewable(f"the aligner failed: {type(error).__name__}"))

    def _tell(self, row: Row) -> None:
        telling = self._running[row].telling
        if not telling.due(len(row.output)):
            return
        try:
            telling.tell(self._engine.beginning(row), len(row.output))
        except Exception:
            # The verdict will say what is wrong; until then there is just nothing to tell.
            log.exception("a revision could not be read")
            telling.stop()

    def _look_ahead(self) -> None:
        """One short pass for a review that may come, if there is none that is here."""
        with self._changed:
            if self._closing or self._waiting or self._batch.lanes or not self._expected:
                return
            key, review = self._expected.popitem(last=False)
        try:
            more = self._engine.foresee(review)
        except ReviewError:
            return  # the review itself will tell, if it comes
        except Exception:
            log.exception("the beginning of a review could not be read ahead")
            self._engine.recover()
            return
        if more:
            with self._changed:
                self._expected.setdefault(key, review)

    def _drop_withdrawn(self) -> None:
        if not any(job.withdrawn for job in self._running.values()):
            return
        self._running = {row: job for row, job in self._running.items() if not job.withdrawn}
        rows = self._batch.rows()
        try:
            self._batch.keep([row for row in rows if row in self._running])
        except Exception as error:  # noqa: BLE001  (out of memory)
            self._broke(rows, error)
            self._batch.clear()

    def _broke(self, rows: list[Row], error: Exception) -> None:
        log.error("a batch of %d reviews failed", len(rows), exc_info=error)
        for row in rows:
            if job := self._running.pop(row, None):
                job.fail(ReviewError(f"the aligner failed: {type(error).__name__}"))
        self._engine.recover()

    def _end(self) -> None:
        """Fail what is unfinished, and all that comes after."""
        with self._changed:
            self._closing = True
            jobs = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._expected.clear()
            self._batch = Batch.none()
        for job in jobs:
            job.fail(ReviewError(CLOSED))
