"""The messages of Anthropic's API as those of a chat. Pure.

There, results of tools stand in the user's turn; a chat has a message for each, before what the
user says. Text blocks become one text, as most servers want it, unless something else stands
between them. Sources: Anthropic's API reference (Messages) and its guides to vision, PDF support,
tool use and extended thinking; OpenAI's API reference (chat).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from stream_aligner_proxy.api.faces.messages_errors import bad

Block = Mapping[str, Any]
Part = dict[str, Any]
Message = dict[str, Any]

# The signature of thinking that came without one says in which field of a chat it came. It goes
# back there, with tool calls: DeepSeek and Kimi answer a 400 without it, others know no such field.
UNSIGNED = "stream_aligner:"
_RETURNED = ("reasoning_content", "reasoning")


def chat_messages(system: str | list[Any] | None, messages: Iterable[Block]) -> list[Message]:
    """All messages of the chat. `content` is a text or a list of objects that have a `type`.
    Raises `RequestError`."""
    chat = _system(system, "system") if system else []
    for i, message in enumerate(messages):
        content, place = message["content"], f"messages.{i}.content"
        match message["role"]:
            case "system":
                chat += _system(content, place)
            case "assistant":
                chat.append(_assistant(content, place))
            case _:
                chat += _user(content, place)
    return chat


def _system(content: str | list[Block], place: str) -> list[Message]:
    texts = [content] if isinstance(content, str) else list(_texts(content, place, "system"))
    text = "\n".join(text for text in texts if text)
    return [{"role": "system", "content": text}] if text else []


def _texts(blocks: Iterable[Block], place: str, who: str) -> Iterator[str]:
    for i, block in enumerate(blocks):
        if block["type"] != "text":
            raise bad(f"{place}.{i}.type", f"only 'text' can be here, in a {who} prompt")
        yield _required(block, "text", f"{place}.{i}")


def _user(content: str | list[Block], place: str) -> Iterator[Message]:
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    parts: list[Part] = []
    results = 0
    for i, block in enumerate(content):
        where = f"{place}.{i}"
        if block["type"] == "tool_result":
            result, shown = _tool_result(block, where)
            results += 1
            parts += shown
            yield result
        else:
            parts += _parts(block, where)
    if parts:
        yield {"role": "user", "content": _joined(parts)}
    elif not results:
        raise bad(place, "Input should not be empty")


def _joined(parts: list[Part]) -> str | list[Part]:
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _tool_result(block: Block, place: str) -> tuple[Message, list[Part]]:
    """The tool's message, which can only be text, and what else it showed: the user shows that."""
    content = block.get("content")
    if content is None:
        content = ""
    if isinstance(content, str):
        parts: list[Part] = [{"type": "text", "text": content}]
    else:
        parts = _all_parts(content, f"{place}.content")
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if block.get("is_error") is True:
        text = f"Error: {text}"
    message = {
        "role": "tool",
        "tool_call_id": _required(block, "tool_use_id", place),
        "content": text,
    }
    return message, [part for part in parts if part["type"] != "text"]


def _all_parts(blocks: object, place: str) -> list[Part]:
    if not isinstance(blocks, list):
        raise bad(place, "Input should be a string or a list of content blocks")
    parts: list[Part] = []
    for i, block in enumerate(blocks):
        if not isinstance(block, Mapping):
            raise bad(f"{place}.{i}", "Input should be an object")
        parts += _parts(block, f"{place}.{i}")
    return parts


def _parts(block: Block, place: str) -> list[Part]:
    match block.get("type"):
        case "text":
            return _text(_required(block, "text", place))
        case "image":
            url = _image(_source(block, place), f"{place}.source")
            return [{"type": "image_url", "image_url": {"url": url}}]
        case "document":
            return _document(block, place)
        case "search_result":
            _no_citations(block, place)
            head = [_required(block, name, place) for name in ("title", "source")]
            found = _all_parts(block.get("content"), f"{place}.content")
            return [*_text("\n".join(head)), *found]
        case kind:
            raise bad(f"{place}.type", f"'{str(kind)[:60]}' cannot be here")


def _text(text: str) -> list[Part]:
    return [{"type": "text", "text": text}] if text else []


def _image(source: Block, place: str) -> str:
    match source.get("type"):
        case "base64":
            return _data_url(source, place)
        case "url":
            return _required(source, "url", place)
        case _:
            raise bad(f"{place}.type", "should be 'base64' or 'url': no files are kept here")


def _data_url(source: Block, place: str) -> str:
    kind, data = _required(source, "media_type", place), _required(source, "data", place)
    return f"data:{kind};base64,{data}"


def _document(block: Block, place: str) -> list[Part]:
    """A PDF as a file, anything else as what it says."""
    _no_citations(block, place)
    source, where = _source(block, place), f"{place}.source"
    given = [text for name in ("title", "context") if isinstance(text := block.get(name), str)]
    head = _text("\n".join(given))
    match source.get("type"):
        case "base64":
            name = block.get("title")
            file = {
                "filename": name if isinstance(name, str) and name else "document.pdf",
                "file_data": _data_url(source, where),
            }
            context = block.get("context")
            said = _text(context) if isinstance(context, str) else []
            return [*said, {"type": "file", "file": file}]
        case "text":
            return [*head, *_text(_required(source, "data", where))]
        case "content":
            content = source.get("content")
            if isinstance(content, str):
                return [*head, *_text(content)]
            return [*head, *_all_parts(content, f"{where}.content")]
        case _:
            raise bad(
                f"{where}.type",
                "should be 'base64', 'text' or 'content': a chat takes no document by its address",
            )


def _no_citations(block: Block, place: str) -> None:
    match block.get("citations"):
        case {"enabled": True}:
            raise bad(f"{place}.citations.enabled", "no citations can be given here")


def _source(block: Block, place: str) -> Block:
    source = block.get("source")
    if source is None:
        raise bad(f"{place}.source", "Field required")
    if not isinstance(source, Mapping):
        raise bad(f"{place}.source", "Input should be an object")
    return source


def _assistant(content: str | list[Block], place: str) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    text, calls, signed = "", [], []
    thoughts: dict[str, str] = {}
    for i, block in enumerate(content):
        where = f"{place}.{i}"
        match block["type"]:
            case "text":
                text += _required(block, "text", where)
            case "tool_use":
                calls.append(_call(block, where))
            case "thinking":
                thought = _required(block, "thinking", where)
                signature = block.get("signature")
                if isinstance(signature, str) and signature.startswith(UNSIGNED):
                    name = signature.removeprefix(UNSIGNED)
                    thoughts[name] = thoughts.get(name, "") + thought
                elif signature:
                    signed.append({"type": "thinking", "thinking": thought, "signature": signature})
            case "redacted_thinking":
                data = _required(block, "data", where)
                signed.append({"type": "redacted_thinking", "data": data})
            case kind:
                raise bad(f"{where}.type", f"'{kind[:60]}' cannot be here")
    message: Message = {"role": "assistant", "content": text or (None if calls else "")}
    if signed:
        message["thinking_blocks"] = signed
    if calls:
        message |= {name: thoughts[name] for name in _RETURNED if name in thoughts}
        message["tool_calls"] = calls
    return message


def _call(block: Block, place: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, Mapping):
        raise bad(f"{place}.input", "Input should be an object")
    function = {
        "name": _required(block, "name", place),
        "arguments": orjson.dumps(given).decode(),
    }
    return {"id": _required(block, "id", place), "type": "function", "function": function}


def _required(block: Block, name: str, place: str) -> str:
    """A text that must be there."""
    value = block.get(name)
    if value is None:
        raise bad(f"{place}.{name}", "Field required")
    if not isinstance(value, str):
        raise bad(f"{place}.{name}", "Input should be a valid string")
    return value
