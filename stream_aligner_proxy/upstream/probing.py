"""Finding out what an upstream does with a partial message of its own.

Two short requests at temperature 0: a question, and the same question with a beginning of the
answer that no fresh answer would have, cut in the middle of a sentence. A few dozen tokens in all.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from stream_aligner_proxy.core.errors import UpstreamError, UpstreamRejected
from stream_aligner_proxy.core.records import ChatRequest, Chunk, Found

QUESTION = "Which colours do the eight lanterns in the story have?"
FRAGMENT = "The seventh lantern is violet, the eighth lantern is"
MAX_TOKENS = 12
# A refusal with one of these is about what was asked, not about the moment or the key.
NOT_UNDERSTOOD = frozenset((400, 404, 405, 415, 422, 501))
_ALIKE_CHARS = 12


class Probed(Protocol):
    """What can be probed: one partial message, nothing else tried instead."""

    def prefilled(
        self, request: ChatRequest, prefix: str, max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]: ...


def plain_body(model: str) -> dict[str, Any]:
    """A short request that every upstream takes."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}


def partial_body(model: str) -> dict[str, Any]:
    """The same with a partial message, for `/tokenize`."""
    body = plain_body(model)
    return {**body, "messages": [*body["messages"], {"role": "assistant", "content": FRAGMENT}]}


async def probe(upstream: Probed, model: str, headers: Mapping[str, str] | None = None) -> Found:
    """What `upstream` does with a partial message for `model`.

    Raises `UpstreamError` where it cannot be asked now.
    """
    request = ChatRequest(model, plain_body(model), (), MAX_TOKENS, headers=headers or {})
    fresh = await _text(upstream, request, "")
    try:
        went_on = await _text(upstream, request, FRAGMENT)
    except UpstreamRejected as error:
        if error.status in NOT_UNDERSTOOD:
            return "rejects"
        raise
    return classify(fresh, went_on)


def classify(fresh: str, went_on: str) -> Found:
    """By the first words of a fresh answer, and of the one that was to go on."""
    new, start = went_on.lstrip(), fresh.lstrip()
    if not new:
        return "continues"  # an end at once is one way to go on
    if new.startswith(FRAGMENT[:_ALIKE_CHARS]) or FRAGMENT.startswith(new):
        return "repeats"
    if start and new[:_ALIKE_CHARS] == start[:_ALIKE_CHARS]:
        return "restarts"
    # In the middle of a sentence nothing begins with a capital letter, but for a new answer.
    return "restarts" if new == went_on and new[0].isupper() else "continues"


async def _text(upstream: Probed, request: ChatRequest, prefix: str) -> str:
    """What is written, asked twice where a second try may help: llama.cpp's server promises to keep
    its connection after a streamed reply, and closes it."""
    try:
        return await _once(upstream, request, prefix)
    except UpstreamError as error:
        if not error.transient:
            raise
    return await _once(upstream, request, prefix)


async def _once(upstream: Probed, request: ChatRequest, prefix: str) -> str:
    async with upstream.prefilled(request, prefix, MAX_TOKENS) as chunks:
        return "".join([chunk.text async for chunk in chunks])


def reason(error: UpstreamError) -> str:
    """For the status page: never a message, which may quote what was sent."""
    return error.code or error.type
