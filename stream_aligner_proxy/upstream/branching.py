"""What is sent for one branch: where to, the body, and who reads the answer. By each way to go on.

A prompt of ids is made by the server's own `/tokenize`, or here where its chat template is known.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from yarl import URL

from stream_aligner_proxy.core.errors import ConfigError, RequestError
from stream_aligner_proxy.core.records import ChatRequest, Way
from stream_aligner_proxy.upstream.bodies import (
    as_chat,
    branch_body,
    prompt_body,
    told_to_go_on,
)
from stream_aligner_proxy.upstream.chunks import ChunkReader
from stream_aligner_proxy.upstream.continuing import ContinuedReader
from stream_aligner_proxy.upstream.counting import tokenize_url
from stream_aligner_proxy.upstream.dialects import Dialect
from stream_aligner_proxy.upstream.endpoint import Endpoint
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.streams import MAX_BODY_BYTES
from stream_aligner_proxy.upstream.templating import LocalTemplate
from stream_aligner_proxy.upstream.tokenizing import (
    CompletionReader,
    completion_body,
    ids_of,
    tokenize_body,
)
from stream_aligner_proxy.upstream.ways import Setting, Ways
from stream_aligner_proxy.upstream.wires import Reader


@dataclass(frozen=True, slots=True)
class Sender:
    """Who asks: the headers that go on, and the one who words a refusal of them."""

    headers: dict[str, str]
    refusals: Refusals


@dataclass(frozen=True, slots=True)
class Asked:
    """The request of one branch."""

    url: URL
    body: Mapping[str, Any]
    reader: Reader


class Branching:
    """Makes the requests for one server's branches. What its readers see of a continuation is told
    to `ways`."""

    def __init__(
        self, endpoint: Endpoint, dialect: Dialect, ways: Ways, template: LocalTemplate | None
    ) -> None:
        self._endpoint = endpoint
        self._dialect = dialect
        self._ways = ways
        self._template = template
        self._chat_url = endpoint.below("chat/completions")

    async def ask(
        self,
        sender: Sender,
        request: ChatRequest,
        way: Way,
        *,
        prefix: str,
        max_tokens: int | None,
        watched: bool = True,
    ) -> Asked:
        """The request for a branch that goes on from `prefix`, where there is one, by `way`. Unless
        it is `watched`, the answer is read as it comes, and nothing is learnt from it."""
        if way == "prompt":  # whoever writes on a prompt writes on it again: no seam to watch
            body = prompt_body(request.body, self._dialect, prefix=prefix, max_tokens=max_tokens)
            return self._on_a_prompt(body, sender)
        request = replace(request, body=as_chat(request.body))
        if not prefix:
            return self._chat(sender, request.body, "", max_tokens)
        if way == "instruct":
            asked = self._chat(sender, told_to_go_on(request.body, prefix), "", max_tokens)
        elif way == "ids":
            asked = await self._on_ids(sender, request, prefix, max_tokens)
        else:
            repeats = watched and self._ways.repeats(request.model)
            asked = self._chat(sender, request.body, prefix, max_tokens, repeats=repeats)
        if watched:
            asked = replace(asked, reader=self._watching(asked.reader, request, prefix, way))
        return asked

    def _chat(
        self,
        sender: Sender,
        body: Mapping[str, Any],
        prefix: str,
        max_tokens: int | None,
        *,
        repeats: bool = False,
    ) -> Asked:
        """`repeats`: the answer begins with `prefix` once more."""
        if (wire := self._dialect.wire) is not None:
            return Asked(
                self._endpoint.below(wire.path(body)),
                wire.branch(body, self._dialect, prefix=prefix, max_tokens=max_tokens),
                wire.reader(sender.refusals),
            )
        return Asked(
            self._chat_url,
            branch_body(body, self._dialect, prefix=prefix, max_tokens=max_tokens),
            ChunkReader(sender.refusals, prefix if repeats else ""),
        )

    async def _on_ids(
        self, sender: Sender, request: ChatRequest, prefix: str, max_tokens: int | None
    ) -> Asked:
        """A completion that goes on as the chat would."""
        body = branch_body(request.body, self._dialect, prefix=prefix, max_tokens=max_tokens)
        if self._template is None:
            return self._on_a_prompt(
                completion_body(body, *await self.tokenized(sender, body)), sender
            )
        prompt = await asyncio.to_thread(self._template.prompt, request.body, prefix)
        stop = self._template.stop(body.get("stop"))
        return self._on_a_prompt(completion_body({**body, "stop": stop}, prompt, None), sender)

    def _on_a_prompt(self, body: Mapping[str, Any], sender: Sender) -> Asked:
        reader = CompletionReader(ChunkReader(sender.refusals))
        return Asked(self._endpoint.below("completions"), body, reader)

    def _watching(self, reader: Reader, request: ChatRequest, prefix: str, way: Way) -> Reader:
        """`reader`, but it looks whether the text does go on, and the ways are told."""
        model = request.model
        return ContinuedReader(
            reader,
            prefix,
            lambda well: (self._ways.saw if well else self._ways.refute)(model, way),
            seam=not self._ways.sure(model, way),
            began=request.began,
        )

    async def tokenized(
        self, sender: Sender, body: Mapping[str, Any]
    ) -> tuple[list[int], int | None]:
        """The ids of a body's conversation by the server's own count, and the room left behind
        them. Raises `UpstreamError`."""
        headers = {**sender.headers, "accept": "application/json"}
        content = encode(tokenize_body(body))
        async with self._endpoint.post(content, headers, tokenize_url(self._endpoint)) as exchange:
            await self._endpoint.answer(exchange, sender.refusals)
            return ids_of(await exchange.read_all(MAX_BODY_BYTES))


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON. Raises `RequestError` for what it has no words for, as half a surrogate pair."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise RequestError("the request holds what JSON cannot carry") from error


def local_template(
    dialect: Dialect, continuation: Setting, tokenizer: Path | None, key: str
) -> LocalTemplate | None:
    """The chat template in the folder `tokenizer`. Raises `ConfigError` with the setting's name
    below `key` where it cannot be, or has to be given."""
    if tokenizer is None:
        if continuation == "ids" and "ids" not in dialect.ways:
            raise ConfigError(f"{key}.continuation: ids need `tokenizer` with this dialect")
        return None
    if dialect.prompts is None:
        raise ConfigError(f"{key}.tokenizer: this dialect completes no prompts")
    try:
        return LocalTemplate(tokenizer, dialect.prompts)
    except ConfigError as error:
        raise ConfigError(f"{key}.tokenizer: {error}") from error
