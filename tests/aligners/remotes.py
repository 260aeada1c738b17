"""Remote aligners for tests: in front of running servers, over lines that can be cut."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.records import NEUTRAL, Review, Turn
from tests.aligners.completion_server import CompletionServer, FaultyLine, faulty_line
from tests.aligners.models import QUESTION
from tests.aligners.test_transformers_engine import CHANGED, KEPT
from tests.servers import serve


@asynccontextmanager
async def served(
    folder: Path, *servers: CompletionServer, **options: Any
) -> AsyncIterator[RemoteAligner]:
    """An aligner in front of running servers."""
    async with AsyncExitStack() as stack:
        urls = [f"{await stack.enter_async_context(serve(one.app))}/v1" for one in servers]
        aligner = RemoteAligner(folder, urls=urls, **options)
        stack.push_async_callback(aligner.close)
        await aligner.start()
        for one in servers:
            one.bodies.clear()
        yield aligner


@asynccontextmanager
async def through_lines(
    folder: Path, *servers: CompletionServer, **options: Any
) -> AsyncIterator[tuple[RemoteAligner, list[FaultyLine]]]:
    """An aligner whose lines to the servers can be cut."""
    async with AsyncExitStack() as stack:
        lines = []
        for server in servers:
            address = await stack.enter_async_context(serve(server.app))
            lines.append(await stack.enter_async_context(faulty_line(address)))
        aligner = RemoteAligner(folder, urls=[line.url for line in lines], **options)
        stack.push_async_callback(aligner.close)
        await aligner.start()
        for server in servers:
            server.bodies.clear()
        yield aligner, lines


def asked(sentence: str = CHANGED, strength: float = NEUTRAL) -> Review:
    return Review(QUESTION, "", sentence, strength=strength)


def talk(number: int) -> Review:
    return Review((Turn("user", f"Go on, {number}."),), "", KEPT)


async def answered(aligner: RemoteAligner, review: Review) -> None:
    """The model may not know what to say to this talk, but its server must answer."""
    try:
        await aligner.review(review)
    except ReviewError as error:
        if "server" in str(error):
            raise


def refusal(status: int, **headers: str) -> Response:
    return JSONResponse({"error": {"message": "not now", "code": status}}, status, headers)


def framed(status: int) -> Response:
    """A refusal inside a 200, as some servers send it for a stream."""
    text = f'data: {{"error": {{"message": "not now", "code": {status}}}}}\n\ndata: [DONE]\n\n'
    return Response(text, media_type="text/event-stream")
