"""OpenAI's messages as those of Anthropic's Messages API. Pure.

There, a conversation is a system prompt apart and turns of `user` and `assistant` that alternate;
tool results are part of a user turn; a block of text must hold something else than white space; and
the last assistant turn, which the model continues, must not end in white space.
Sources: Anthropic's API reference (Messages) and its guides to vision, PDF support and tool use.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stream_aligner_proxy.upstream.wires.openai_body import (
    calls_of,
    file_data_of,
    from_data_url,
    parts_of,
    refusal,
    text_of,
    url_of,
)

Block = dict[str, Any]
Turn = dict[str, Any]


def translate(messages: list[Mapping[str, Any]]) -> tuple[list[Block], list[Turn]]:
    """The system prompt and the turns. Raises `RequestError` for what cannot be said there."""
    system: list[Block] = []
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        match message["role"]:
            case "system" | "developer" as role:
                for where, part in parts_of(message, place):
                    if part.get("type") != "text":
                        raise refusal(where, f"must be text in a {role} message")
                    system += _text(part)
            case "user":
                _say(turns, "user", _user_blocks(message, place))
            case "assistant":
                _say(turns, "assistant", _assistant_blocks(message, place))
            case "tool":
                _say(turns, "user", [_tool_result(message, place)])
            case role:
                raise refusal(f"{place}.role", f"cannot be '{role}' for this upstream: use 'tool'")
    if not turns:
        raise refusal("messages", "must hold a message that is not a system message")
    _trim_end(turns[-1])
    return system, turns


def continuing(turns: list[Turn], prefix: str) -> list[Turn]:
    """The turns with a beginning of the reply, which the model writes on from."""
    _say(turns, "assistant", [{"type": "text", "text": prefix}])
    _trim_end(turns[-1])
    return turns


def _say(turns: list[Turn], role: str, blocks: list[Block]) -> None:
    """Add to the last turn if it is of the same role; a turn without content is none."""
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _trim_end(turn: Turn) -> None:
    last = turn["content"][-1]
    if turn["role"] == "assistant" and last["type"] == "text":
        last["text"] = last["text"].rstrip()


def _text(part: Mapping[str, Any]) -> list[Block]:
    if not part["text"].strip():
        return []
    block = {"type": "text", "text": part["text"]}
    if isinstance(part.get("cache_control"), Mapping):  # a convention of clients that know Claude
        block["cache_control"] = part["cache_control"]
    return [block]


def _user_blocks(message: Mapping[str, Any], place: str) -> list[Block]:
    blocks: list[Block] = []
    for where, part in parts_of(message, place):
        blocks += _block(part, where)
    return blocks


def _block(part: Mapping[str, Any], where: str) -> list[Block]:
    match part.get("type"):
        case "text":
            return _text(part)
        case "image_url":
            return [{"type": "image", "source": _image_source(url_of(part, where), where)}]
        case "file":
            data = from_data_url(file_data_of(part, where))
            if data is None or data[0] != "application/pdf":
                raise refusal(f"{where}.file.file_data", "must be a data URL of a PDF, in base64")
            return [{"type": "document", "source": _inline(*data)}]
        case kind:
            raise refusal(f"{where}.type", f"cannot be '{kind}' for this upstream")


def _image_source(url: str, where: str) -> Block:
    if data := from_data_url(url):
        return _inline(*data)
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    raise refusal(f"{where}.image_url.url", "must be a data URL in base64, or begin with https://")


def _inline(media_type: str, data: str) -> Block:
    return {"type": "base64", "media_type": media_type, "data": data}


def _assistant_blocks(message: Mapping[str, Any], place: str) -> list[Block]:
    blocks = list(_thinking(message, place))
    for where, part in parts_of(message, place):
        if part.get("type") != "text":
            raise refusal(where, "must be text in an assistant message")
        blocks += _text(part)
    for call in calls_of(message, place):
        blocks.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        )
    return blocks


def _thinking(message: Mapping[str, Any], place: str) -> Iterator[Block]:
    """Thinking that came with an earlier reply, signed: a turn with tool calls needs it again."""
    given = message.get("thinking_blocks") or []
    if not isinstance(given, list) or not all(isinstance(block, Mapping) for block in given):
        raise refusal(f"{place}.thinking_blocks", "must be a list of objects")
    for block in given:
        yield dict(block)


def _tool_result(message: Mapping[str, Any], place: str) -> Block:
    call = message.get("tool_call_id")
    if not isinstance(call, str):
        raise refusal(f"{place}.tool_call_id", "must be a text")
    result: Block = {"type": "tool_result", "tool_use_id": call}
    if text := text_of(message, place, "tool"):
        result["content"] = text
    return result
