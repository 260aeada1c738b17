"""OpenAI's messages as the contents of Gemini's generateContent. Pure.

There, a conversation is a system instruction apart and contents of the roles `user` and `model`;
tool calls and their results are parts, matched by id and by the function's name.
Sources: Google's Gemini API reference (Content, Part), its guides to function calling, image and
document understanding, and thought signatures.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from stream_aligner_proxy.upstream.wires.openai_body import (
    calls_of,
    file_data_of,
    from_data_url,
    parts_of,
    refusal,
    text_of,
    url_of,
)

Part = dict[str, Any]
Content = dict[str, Any]

# Gemini 3 refuses a tool call of the history whose signature is missing; Google's guide gives this
# word for a call that Gemini did not write.
NO_SIGNATURE = "skip_thought_signature_validator"


def translate(
    messages: list[Mapping[str, Any]], *, signed: bool
) -> tuple[list[Part], list[Content]]:
    """The system instruction's parts and the contents. Raises `RequestError`.

    `signed`: the model wants the signature of every tool call back.
    """
    system: list[Part] = []
    contents: list[Content] = []
    names: dict[str, str] = {}  # of the functions called, by the call's id
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        match message["role"]:
            case "system" | "developer" as role:
                if text := text_of(message, place, role):
                    system.append({"text": text})
            case "user":
                parts = [_part(part, where) for where, part in parts_of(message, place)]
                _say(contents, "user", [part for part in parts if part])
            case "assistant":
                _say(contents, "model", _model_parts(message, place, names, signed))
            case "tool":
                _say(contents, "user", [_tool_result(message, place, names)])
            case role:
                raise refusal(f"{place}.role", f"cannot be '{role}' for this upstream: use 'tool'")
    if not contents:
        raise refusal("messages", "must hold a message that is not a system message")
    return system, contents


def continuing(contents: list[Content], prefix: str) -> list[Content]:
    """The contents with a beginning of the reply, which the model writes on from."""
    _say(contents, "model", [{"text": prefix}])
    return contents


def _say(contents: list[Content], role: str, parts: list[Part]) -> None:
    if not parts:
        return
    if contents and contents[-1]["role"] == role:
        contents[-1]["parts"] += parts
    else:
        contents.append({"role": role, "parts": parts})


def _part(part: Mapping[str, Any], where: str) -> Part:
    """One part of a user message; empty for an empty text."""
    match part.get("type"):
        case "text":
            return {"text": part["text"]} if part["text"] else {}
        case "image_url":
            return _inline(url_of(part, where), f"{where}.image_url.url")
        case "file":
            return _inline(file_data_of(part, where), f"{where}.file.file_data")
        case "input_audio":
            audio = part.get("input_audio")
            if not isinstance(audio, Mapping) or not isinstance(audio.get("data"), str):
                raise refusal(f"{where}.input_audio.data", "must be a text")
            kind = f"audio/{audio.get('format', 'wav')}"
            return {"inlineData": {"mimeType": kind, "data": audio["data"]}}
        case kind:
            raise refusal(f"{where}.type", f"cannot be '{kind}' for this upstream")


def _inline(url: str, where: str) -> Part:
    found = from_data_url(url)
    if found is None:
        raise refusal(where, "must be a data URL in base64 for this upstream")
    return {"inlineData": {"mimeType": found[0], "data": found[1]}}


def _model_parts(
    message: Mapping[str, Any], place: str, names: dict[str, str], signed: bool
) -> list[Part]:
    parts: list[Part] = []
    for where, part in parts_of(message, place):
        if part.get("type") != "text":
            raise refusal(where, "must be text in an assistant message")
        if part["text"]:
            parts.append({"text": part["text"]})
    for n, call in enumerate(calls_of(message, place)):
        names[call.id] = call.name
        sent: Part = {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        google = call.extra.get("google")
        signature = google.get("thought_signature") if isinstance(google, Mapping) else None
        if isinstance(signature, str):
            sent["thoughtSignature"] = signature
        elif signed and n == 0:  # of calls made at once, only the first is signed
            sent["thoughtSignature"] = NO_SIGNATURE
        parts.append(sent)
    return parts


def _tool_result(message: Mapping[str, Any], place: str, names: Mapping[str, str]) -> Part:
    call = message.get("tool_call_id")
    if not isinstance(call, str) or call not in names:
        raise refusal(f"{place}.tool_call_id", "must name a call of an earlier assistant message")
    text = text_of(message, place, "tool")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    response = value if isinstance(value, dict) else {"result": value}
    return {"functionResponse": {"id": call, "name": names[call], "response": response}}
