"""What a chat delta that is not prose means in the Responses API. Pure.

Left out: sound, pictures and references, which this API has no place for in a message.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# The first that holds text: servers that send two of them say the same in both.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CITED = {"title": "", "start_index": 0, "end_index": 0}


def thought(part: Mapping[str, Any]) -> str:
    """The reasoning in a delta, whatever the upstream calls it."""
    for name in _THOUGHTS:
        value = part.get(name)
        if isinstance(value, str) and value:
            return value
    if details := part.get("reasoning_details"):
        return "".join(_texts(details, "text", "summary"))
    content = part.get("content")
    if not isinstance(content, list):
        return ""
    found: list[str] = []
    for piece in content:  # Mistral's
        if isinstance(piece, dict) and piece.get("type") == "thinking":
            inner = piece.get("thinking")
            found += [inner] if isinstance(inner, str) else _texts(inner, "text")
    return "".join(found)


def _texts(pieces: object, *names: str) -> Iterator[str]:
    for piece in pieces if isinstance(pieces, list) else ():
        for name in names:
            if isinstance(piece, dict) and isinstance(piece.get(name), str):
                yield piece[name]
                break


def citations(part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Web citations, which chat has one level deeper. Clients rely on all of their fields."""
    told = part.get("annotations")
    for one in told if isinstance(told, list) else ():
        cited = one.get("url_citation") if isinstance(one, dict) else None
        if isinstance(cited, dict) and isinstance(cited.get("url"), str):
            yield {**_CITED, **cited, "type": "url_citation"}


def pieces_of_calls(part: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    told = part.get("tool_calls")
    for piece in told if isinstance(told, list) else ():
        if isinstance(piece, dict):
            yield piece
