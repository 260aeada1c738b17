"""Items of the Responses API as chat messages.

Messages map one to one, but two things that many upstreams insist on: what stands at the beginning
as instructions becomes a single system message (chat templates of open models know no `developer`,
and often take no second one), and an assistant's text and the calls after it are one message.
Reasoning is left out: most chat APIs refuse it in what they are sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stream_aligner_proxy.api.faces.responses_schemas import invalid, text_at, unsupported

Item = Mapping[str, Any]
_TEXTS = ("input_text", "output_text", "text")
_SYSTEM = ("system", "developer")


def items_of(value: object) -> list[dict[str, Any]]:
    """`input` as a list of items. Raises `RequestError`."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        invalid("input", "must be a string or a list of items")
    if not value:
        invalid("input", "must not be empty")
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            invalid(f"input[{number}]", "must be an object")
    return value


def messages_of(
    instructions: str | None, history: Sequence[Item], items: Sequence[Item]
) -> list[dict[str, Any]]:
    """The chat messages of a conversation. Raises `RequestError`, which names the item."""
    messages = _Messages()
    if instructions:
        messages.say({"role": "system", "content": instructions})
    for item in history:
        messages.add(item, "previous_response_id")
    for number, item in enumerate(items):
        messages.add(item, f"input[{number}]")
    if not messages.said:
        invalid("input", "must hold more than reasoning")
    return messages.said


class _Messages:
    """Grows by one item at a time."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def add(self, item: Item, param: str) -> None:
        kind = item.get("type")
        if kind is None:  # both may be left out
            kind = "message" if "role" in item or "id" not in item else "item_reference"
        match kind:
            case "message":
                self.say(_message(item, param))
            case "function_call":
                called = {
                    "name": text_at(item, "name", param),
                    "arguments": text_at(item, "arguments", param),
                }
                self._call("function", called, item, param)
            case "custom_tool_call":
                called = {
                    "name": text_at(item, "name", param),
                    "input": text_at(item, "input", param),
                }
                self._call("custom", called, item, param)
            case "function_call_output" | "custom_tool_call_output":
                self.say(
                    {
                        "role": "tool",
                        "tool_call_id": text_at(item, "call_id", param),
                        "content": _content(item.get("output"), f"{param}.output"),
                    }
                )
            case "reasoning":
                pass
            case "item_reference":
                unsupported(param, "single items are not kept; send the item itself")
            case str():
                unsupported(f"{param}.type", "an upstream of chat has no such items")
            case _:
                invalid(f"{param}.type", "must be a string")

    def say(self, message: dict[str, Any]) -> None:
        first = self.said[0] if len(self.said) == 1 else None
        if (
            first is not None
            and first["role"] == message["role"] == "system"
            and isinstance(first["content"], str)
            and isinstance(message["content"], str)
        ):
            first["content"] += "\n\n" + message["content"]
        else:
            self.said.append(message)

    def _call(self, kind: str, called: dict[str, str], item: Item, param: str) -> None:
        call = {"id": text_at(item, "call_id", param), "type": kind, kind: called}
        if not self.said or self.said[-1]["role"] != "assistant":
            self.said.append({"role": "assistant", "content": None})
        self.said[-1].setdefault("tool_calls", []).append(call)


def _message(item: Item, param: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "assistant", *_SYSTEM):
        invalid(f"{param}.role", "must be 'user', 'assistant', 'system' or 'developer'")
    content = _content(item.get("content"), f"{param}.content", joined=role == "assistant")
    return {"role": "system" if role in _SYSTEM else role, "content": content}


def _content(value: object, param: str, *, joined: bool = False) -> str | list[dict[str, Any]]:
    """Text as a string where it is all there is (`joined`: of several parts, too), else parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        invalid(param, "must be a string or a list of content parts")
    parts = [_part(part, f"{param}[{number}]") for number, part in enumerate(value)]
    if all(part.keys() == {"type", "text"} for part in parts) and (joined or len(parts) < 2):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: object, param: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        invalid(param, "must be an object")
    made: dict[str, Any]
    match part.get("type"):
        case kind if kind in _TEXTS:
            made = {"type": "text", "text": text_at(part, "text", param)}
        case "input_image":
            made = {"type": "image_url", "image_url": _image(part, param)}
        case "input_file":
            made = {"type": "file", "file": _file(part, param)}
        case "input_audio":
            made = {"type": "input_audio", "input_audio": part.get("input_audio")}
        case "refusal":
            made = {"type": "refusal", "refusal": text_at(part, "refusal", param)}
        case str():
            unsupported(f"{param}.type", "an upstream of chat has no such parts")
        case _:
            invalid(f"{param}.type", "must be a string")
    # Chat has it under the same name.
    if part.get("prompt_cache_breakpoint") is not None:
        made["prompt_cache_breakpoint"] = part["prompt_cache_breakpoint"]
    return made


def _image(part: Item, param: str) -> dict[str, Any]:
    if part.get("file_id") is not None:
        unsupported(f"{param}.file_id", "files are not kept; send the image as 'image_url'")
    image = {"url": text_at(part, "image_url", param)}
    if part.get("detail") is not None:
        image["detail"] = part["detail"]
    return image


def _file(part: Item, param: str) -> dict[str, Any]:
    if part.get("file_url") is not None:
        unsupported(f"{param}.file_url", "chat has no such files; send it as 'file_data'")
    if part.get("file_data") is None and part.get("file_id") is None:
        invalid(param, "must hold 'file_data' or 'file_id'")
    names = ("filename", "file_data", "file_id")
    return {name: part[name] for name in names if part.get(name) is not None}
