"""One tool call of a reply, from the pieces of chat's deltas to an item and its events. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

# An event without its number, which it gets when it is sent.
Event = dict[str, Any]

# By kind: the item's type, the beginning of its id, the field that grows, and its events' name.
_KINDS = {
    "function": ("function_call", "fc", "arguments", "response.function_call_arguments"),
    "custom": ("custom_tool_call", "ctc", "input", "response.custom_tool_call_input"),
}


@dataclass(slots=True)
class Call:
    """A call that is being written. `index`, its place in the output, is None until its tool's
    name is known."""

    kind: str = "function"
    call_id: str = ""
    name: str = ""
    index: int | None = None
    item_id: str = ""
    pieces: list[str] = field(default_factory=list)
    ended: bool = False

    def describe(self, piece: Mapping[str, Any]) -> bool:
        """Take a piece before the call has begun; whether its tool is named now."""
        kind, name, text = _called(piece)
        self.kind = kind or self.kind
        self.name = self.name or name
        given = piece.get("id")
        if isinstance(given, str):
            self.call_id = given or self.call_id
        if text:
            self.pieces.append(text)
        return bool(self.name)

    def begin(self, key: str, index: int, taken: Collection[str]) -> list[Event]:
        """Ids must tell the calls of a reply apart: some servers give none, or one to all.
        `taken` are those of calls that have begun."""
        self.index = index
        self.item_id = f"{_KINDS[self.kind][1]}_{key}_{index}"
        if not self.call_id or self.call_id in taken:
            self.call_id = f"call_{key}_{index}"
        text = "".join(self.pieces)
        events = [added(index, self._value("in_progress", ""))]
        return [*events, self._grown(text)] if text else events

    def grow(self, piece: Mapping[str, Any]) -> list[Event]:
        text = _called(piece)[2]
        if not text:
            return []
        self.pieces.append(text)
        return [self._grown(text)]

    def end(self, status: str) -> tuple[dict[str, Any], Event]:
        """The item, and the event that says its arguments."""
        self.ended = True
        text = "".join(self.pieces)
        said = {**self._about("done"), _KINDS[self.kind][2]: text}
        return self._value(status, text), said

    def complete(self) -> bool:
        """Whether its arguments are a whole JSON object, after which nothing can come."""
        if self.kind != "function" or self.index is None:
            return False
        try:
            return isinstance(orjson.loads("".join(self.pieces)), dict)
        except orjson.JSONDecodeError:
            return False

    def _value(self, status: str, text: str) -> dict[str, Any]:
        kind, _, grows, _ = _KINDS[self.kind]
        return {
            "id": self.item_id,
            "type": kind,
            "call_id": self.call_id,
            "name": self.name,
            grows: text,
            "status": status,
        }

    def _grown(self, text: str) -> Event:
        return {**self._about("delta"), "delta": text}

    def _about(self, step: str) -> Event:
        return {
            "type": f"{_KINDS[self.kind][3]}.{step}",
            "item_id": self.item_id,
            "output_index": self.index,
        }


def added(index: int, item: dict[str, Any]) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def _called(piece: Mapping[str, Any]) -> tuple[str, str, str]:
    """Of a piece of a call: its kind, the tool's name, and the growth of its arguments or input;
    empty for what it does not say."""
    for kind, (_, _, grows, _) in _KINDS.items():
        if isinstance(inner := piece.get(kind), dict):
            name, text = inner.get("name"), inner.get(grows)
            return (
                kind,
                name if isinstance(name, str) else "",
                text if isinstance(text, str) else "",
            )
    return "", "", ""
