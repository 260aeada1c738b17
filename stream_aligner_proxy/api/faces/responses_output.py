"""The output items of one reply, built from its deliveries; every step says its events.

The same steps make the stream and the whole object, so they cannot differ. Pure.

A message or reasoning item ends where something else begins. Calls stay open beside each other,
since upstreams may write several at once; one whose arguments are complete ends when the next
begins, as they come from OpenAI's own server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_aligner_proxy.api.faces.describing import sentence_object
from stream_aligner_proxy.api.faces.responses_calls import Call, Event, added
from stream_aligner_proxy.api.faces.responses_parts import citations, pieces_of_calls, thought
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.records import Delivery

_PREFIXES = {"message": "msg", "reasoning": "rs"}
# Of a content part: the field that grows, and what its events are called.
_GROWS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}


@dataclass(slots=True)
class _Part:
    """A content part that is still being written."""

    kind: str
    index: int
    pieces: list[str] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def value(self) -> dict[str, Any]:
        value: dict[str, Any] = {"type": self.kind, _GROWS[self.kind][0]: "".join(self.pieces)}
        if self.kind == "output_text":
            value |= {"annotations": list(self.annotations), "logprobs": []}
        return value


@dataclass(slots=True)
class _Item:
    """A message or a reasoning item that is still being written."""

    index: int
    head: dict[str, Any]
    content: list[dict[str, Any]] = field(default_factory=list)
    part: _Part | None = None

    def value(self, status: str) -> dict[str, Any]:
        return {**self.head, "status": status, "content": list(self.content)}


class Output:
    """`key` makes the items' ids. `items` are complete after `end`."""

    def __init__(self, key: str, *, tells_sentences: bool) -> None:
        self._key = key
        self._tells = tells_sentences
        self._events: list[Event] = []
        self._done: dict[int, dict[str, Any]] = {}
        self._begun = 0
        self._open: _Item | None = None
        self._calls: dict[int, Call] = {}
        self._untold: list[dict[str, Any]] = []  # sentences without text, and no text to go with
        self.sentences: list[dict[str, Any]] = []

    @property
    def items(self) -> list[dict[str, Any]]:
        return [self._done[index] for index in sorted(self._done)]

    def add(self, delivery: Delivery) -> list[Event]:
        """The events of one delivery."""
        if delivery.part is not None:
            self._add_part(delivery.part)
        sentence = sentence_object(delivery)
        if sentence is not None:
            self.sentences.append(sentence)
        if not self._tells:
            sentence = None
        if delivery.text:
            self._grow("message", "output_text", delivery.text, sentence)
        elif sentence is not None:
            part = self._open.part if self._open is not None else None
            if part is not None and part.kind == "output_text":
                self._grow("message", "output_text", "", sentence)
            else:
                self._untold.append(sentence)
        return self._taken()

    def end(self, status: str) -> list[Event]:
        """The events that end all items. `status`, of the response, is also its last item's."""
        for call in self._calls.values():
            if call.index is None:  # its tool was never named
                self._begin_call(call)
        if status == "completed" and not self._begun:
            self._begin("message", "output_text")
        last = self._begun - 1
        if self._open is not None:
            self._end_item(status if self._open.index == last else "completed")
        for call in self._calls.values():
            if call.index is not None and not call.ended:
                self._end_call(call, status if call.index == last else "completed")
        return self._taken()

    # --- messages and reasoning --------------------------------------------------------------

    def _add_part(self, part: Mapping[str, Any]) -> None:
        if text := thought(part):
            self._grow("reasoning", "reasoning_text", text)
        refusal = part.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._grow("message", "refusal", refusal)
        for cited in citations(part):
            self._cite(cited)
        for piece in pieces_of_calls(part):
            self._add_call(piece)

    def _grow(
        self, kind: str, part_kind: str, text: str, sentence: dict[str, Any] | None = None
    ) -> None:
        item, part = self._begin(kind, part_kind)
        part.pieces.append(text)
        event = self._about(item, part, f"{_GROWS[part_kind][1]}.delta")
        event["delta"] = text
        if part_kind == "output_text":
            event["logprobs"] = []
        if sentence is not None:
            event[EXTENSION] = {"sentence": sentence}
        self._events.append(event)

    def _begin(self, kind: str, part_kind: str) -> tuple[_Item, _Part]:
        """The open item and its open part, begun where they are not."""
        item = self._open
        if item is not None and item.head["type"] != kind:
            self._end_item("completed")
            item = None
        if item is None:
            index = self._take_index()
            head: dict[str, Any] = {"id": f"{_PREFIXES[kind]}_{self._key}_{index}", "type": kind}
            if kind == "message":
                head["role"] = "assistant"
            else:
                head["summary"] = []
            item = self._open = _Item(index, head)
            self._events.append(added(index, item.value("in_progress")))
        if item.part is not None and item.part.kind != part_kind:
            self._end_part(item)
        if item.part is None:
            item.part = _Part(part_kind, len(item.content))
            event = self._about(item, item.part, "response.content_part.added")
            self._events.append({**event, "part": item.part.value()})
            if part_kind == "output_text" and self._untold:
                untold, self._untold = self._untold, []
                for sentence in untold:
                    self._grow(kind, part_kind, "", sentence)
        return item, item.part

    def _cite(self, cited: dict[str, Any]) -> None:
        item, part = self._begin("message", "output_text")
        event = self._about(item, part, "response.output_text.annotation.added")
        event |= {"annotation_index": len(part.annotations), "annotation": cited}
        part.annotations.append(cited)
        self._events.append(event)

    def _end_part(self, item: _Item) -> None:
        part = item.part
        if part is None:
            return
        value = part.value()
        grown, name = _GROWS[part.kind]
        said = self._about(item, part, f"{name}.done")
        said[grown] = value[grown]
        if part.kind == "output_text":
            said["logprobs"] = []
        done = self._about(item, part, "response.content_part.done")
        self._events += [said, {**done, "part": value}]
        item.content.append(value)
        item.part = None

    def _end_item(self, status: str) -> None:
        item = self._open
        if item is None:
            return
        self._open = None
        self._end_part(item)
        self._finish(item.index, item.value(status))

    @staticmethod
    def _about(item: _Item, part: _Part, kind: str) -> Event:
        return {
            "type": kind,
            "item_id": item.head["id"],
            "output_index": item.index,
            "content_index": part.index,
        }

    # --- calls -------------------------------------------------------------------------------

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        index = piece.get("index")
        # Servers that send a call in one piece may leave its number out.
        number = index if isinstance(index, int) else len(self._calls)
        call = self._calls.setdefault(number, Call())
        if call.ended:
            return
        if call.index is not None:
            self._events += call.grow(piece)
        elif call.describe(piece):
            self._begin_call(call)

    def _begin_call(self, call: Call) -> None:
        self._end_item("completed")
        for other in self._calls.values():
            if not other.ended and other.complete():
                self._end_call(other, "completed")
        taken = [other.call_id for other in self._calls.values() if other.index is not None]
        self._events += call.begin(self._key, self._take_index(), taken)

    def _end_call(self, call: Call, status: str) -> None:
        assert call.index is not None
        value, said = call.end(status)
        self._events.append(said)
        self._finish(call.index, value)

    # --- all items ---------------------------------------------------------------------------

    def _finish(self, index: int, value: dict[str, Any]) -> None:
        self._done[index] = value
        event = {"type": "response.output_item.done", "output_index": index, "item": value}
        self._events.append(event)

    def _take_index(self) -> int:
        self._begun += 1
        return self._begun - 1

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events
