"""Running the alignments of one request, and writing what came of them as one JSON object."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from stream_aligner_proxy.api.errors import internal_error, log_error
from stream_aligner_proxy.api.faces.openai_errors import OpenAiErrors
from stream_aligner_proxy.api.patience import Patience
from stream_aligner_proxy.api.response import HttpOut, WatchedResponse
from stream_aligner_proxy.core.errors import ProxyError

_log = logging.getLogger(__name__)

# Of one request: the aligner is there for the others, too.
AT_ONCE = 8


class Job(Protocol):
    async def run(self) -> dict[str, Any]: ...


class AlignResponse(WatchedResponse):
    """One job's object, or its error as an HTTP error; or (`single` is False) a list in which a job
    that failed has its error at its place. The client's leaving cancels all."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        single: bool,
        request_id: str,
        count_error: Callable[[ProxyError], None],
        patience: Patience,
    ) -> None:
        super().__init__(
            request_id=request_id,
            headers=dict,
            count_error=count_error,
            shape=OpenAiErrors(),
            patience=patience,
        )
        self._jobs = jobs
        self._single = single
        self._places = asyncio.Semaphore(AT_ONCE)

    async def write_to(self, out: HttpOut) -> None:
        answer = await self._jobs[0].run() if self._single else await self._all()
        await out.whole(orjson.dumps(answer))

    async def _all(self) -> dict[str, Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._one(number, job)) for number, job in enumerate(self._jobs)
            ]
        return {"object": "list", "data": [task.result() for task in tasks]}

    async def _one(self, index: int, job: Job) -> dict[str, Any]:
        async with self._places:
            try:
                return {"index": index, **await job.run()}
            except ProxyError as error:
                failed = error
            except Exception:  # noqa: BLE001 - a defect over one item leaves the others theirs
                _log.exception("request %s: internal error", self._request_id)
                failed = internal_error()
        self._count_error(failed)
        log_error(failed, self._request_id)
        return {"index": index, **failed.body()}
