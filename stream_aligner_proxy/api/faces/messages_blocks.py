"""From deliveries to the content blocks of a message: begun, filled and ended one after another.

Pure. Events are objects as Anthropic's API sends them. A chat says less than a message does: which
thought is over, that a tool call is complete. What follows closes them. Source: Anthropic's guide
to streaming messages.
"""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic_core import from_json

from stream_aligner_proxy.api.faces.messages_turns import UNSIGNED
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import Delivery

Event = dict[str, Any]

# Where servers put thoughts that are plain text; some send the same under two names.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(slots=True, eq=False)
class _Call:
    """A tool call. `told`: how much of its arguments has been written."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    told: int = 0

    def complete(self) -> bool:
        try:
            orjson.loads(self.arguments)
        except orjson.JSONDecodeError:
            return False
        return True

    def input(self) -> dict[str, Any]:
        """The arguments, as far as they were written. Raises `UpstreamGarbled`."""
        try:
            # A reply that reached its limit ends anywhere; SDKs read such a beginning alike.
            value = from_json(self.arguments or "{}", allow_partial=True)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise UpstreamGarbled("the upstream sent a tool call whose arguments are no object")
        return value


@dataclass(slots=True)
class Blocks:
    """The blocks of one message. `refused`: the upstream said that it refuses. `called`: there is
    a tool call. `untold`: sentences that no event has carried yet."""

    refused: bool = False
    called: bool = False
    untold: list[dict[str, Any]] = field(default_factory=list)
    _index: int = -1
    _open: str = ""  # the type of the open block
    _signature: str = ""
    _calls: list[_Call] = field(default_factory=list)  # the first one is being written
    _numbers: dict[int, _Call] = field(default_factory=dict)

    def add(self, delivery: Delivery, sentence: dict[str, Any] | None = None) -> Iterator[Event]:
        """The events of one delivery; `sentence` is its history. Raises `UpstreamGarbled`."""
        if delivery.part is not None:
            yield from self._part(delivery.part)
        if delivery.text:
            yield from self._text(delivery.text, sentence)
        elif sentence is not None:
            # Deleted, or delivered before. Where no text is being written it waits for one.
            self.untold.append(sentence)
            if self._open == "text":
                yield from self._tell_all()

    def end(self) -> Iterator[Event]:
        """What is still to be written. Raises `UpstreamGarbled`."""
        while self._calls:
            yield from self._write_call()
            yield from self._close()
            self._calls.pop(0)
        yield from self._close()

    def _part(self, part: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._thoughts(part)
        refusal = part.get("refusal")
        if isinstance(refusal, str) and refusal:
            self.refused = True
            yield from self._text(refusal)
        pieces = part.get("tool_calls")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, Mapping):
                yield from self._piece(piece)

    # --- text --------------------------------------------------------------------------------

    def _text(self, text: str, sentence: dict[str, Any] | None = None) -> Iterator[Event]:
        if self._open != "text":
            yield from self.end()
            yield self._begin({"type": "text", "text": ""})
            yield from self._tell_all()
        yield self._delta({"type": "text_delta", "text": text}, sentence)

    def _tell_all(self) -> Iterator[Event]:
        told, self.untold = self.untold, []
        for sentence in told:
            yield self._delta({"type": "text_delta", "text": ""}, sentence)

    # --- thinking ----------------------------------------------------------------------------

    def _thoughts(self, part: Mapping[str, Any]) -> Iterator[Event]:
        name = next((n for n in _THOUGHTS if isinstance(part.get(n), str)), None)
        if name is not None:
            yield from self._think(part[name], name)
        else:
            for details in (part.get("reasoning_details"), part.get("content")):
                yield from self._think(_plain(details), "")
        blocks = part.get("thinking_blocks")
        for block in blocks if isinstance(blocks, list) else ():
            if isinstance(block, Mapping):
                yield from self._signed(block, told=name is not None)

    def _think(self, text: str, field_name: str) -> Iterator[Event]:
        if not text:
            return
        if self._open != "thinking":
            yield from self.end()
            self._signature = UNSIGNED + field_name
            yield self._begin({"type": "thinking", "thinking": "", "signature": ""})
        yield self._delta({"type": "thinking_delta", "thinking": text})

    def _signed(self, block: Mapping[str, Any], *, told: bool) -> Iterator[Event]:
        """Anthropic's own blocks: the signature ends a thought whose text was told before."""
        match block:
            case {"type": "redacted_thinking", "data": str(data)}:
                yield from self.end()
                yield self._begin({"type": "redacted_thinking", "data": data})
                yield from self._close()
            case {"type": "thinking"}:
                text, signature = block.get("thinking"), block.get("signature")
                retold = told or (signature and self._open == "thinking")
                if isinstance(text, str) and not retold:
                    yield from self._think(text, "")
                if isinstance(signature, str) and signature and self._open == "thinking":
                    self._signature = signature
                    yield from self._close()

    # --- tool calls --------------------------------------------------------------------------

    def _piece(self, piece: Mapping[str, Any]) -> Iterator[Event]:
        """One piece of a call. Where servers mix the pieces of several, those of the later ones
        wait until the first is complete."""
        call = self._call_of(piece)
        function = piece.get("function")
        if isinstance(function, Mapping):
            if isinstance(name := function.get("name"), str) and not call.told:
                call.name = call.name or name
            arguments = function.get("arguments")
            if isinstance(arguments, Mapping):
                arguments = orjson.dumps(arguments).decode()
            if isinstance(arguments, str):
                if arguments.strip() and call not in self._calls:
                    raise UpstreamGarbled("the upstream went on with a tool call that had ended")
                call.arguments += arguments
        while len(self._calls) > 1 and self._calls[0].complete():
            yield from self._write_call()
            yield from self._close()
            self._calls.pop(0)
        if self._calls and self._calls[0].name:
            yield from self._write_call()

    def _call_of(self, piece: Mapping[str, Any]) -> _Call:
        index, call_id = piece.get("index"), piece.get("id")
        # Servers that send a call in one piece may leave its number out.
        number = index if isinstance(index, int) else len(self._numbers)
        call = self._numbers.get(number)
        fresh = isinstance(call_id, str) and call_id
        # Some give every call the number 0, and an id of its own.
        if call is None or (fresh and call.id and call.id != call_id):
            call = self._numbers[number] = _Call()
            self._calls.append(call)
        if fresh and not call.id:
            call.id = str(call_id)
        return call

    def _write_call(self) -> Iterator[Event]:
        call = self._calls[0]
        if self._open != "tool_use":
            yield from self._close()
            self.called = True
            call.id = call.id or f"toolu_{uuid.uuid4().hex}"
            yield self._begin({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
        if piece := call.arguments[call.told :]:
            call.told = len(call.arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": piece})

    # --- blocks ------------------------------------------------------------------------------

    def _begin(self, block: dict[str, Any]) -> Event:
        self._index += 1
        self._open = block["type"]
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any], sentence: dict[str, Any] | None = None) -> Event:
        event: Event = {"type": "content_block_delta", "index": self._index, "delta": delta}
        if sentence is not None:
            event[EXTENSION] = {"sentence": sentence}
        return event

    def _close(self) -> Iterator[Event]:
        match self._open:
            case "":
                return
            case "thinking":
                yield self._delta({"type": "signature_delta", "signature": self._signature})
            case "tool_use":
                self._calls[0].input()
        self._open = ""
        yield {"type": "content_block_stop", "index": self._index}


def _plain(details: object) -> str:
    """The thoughts in a list of parts, such as OpenRouter's `reasoning_details` or Mistral's
    content."""
    texts: list[str] = []
    for item in details if isinstance(details, list) else ():
        if not isinstance(item, Mapping):
            continue
        for name in ("text", "summary", "thinking"):
            value = item.get(name)
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, list):
                texts.append(_plain(value))
    return "".join(texts)
