"""A Secret as Kubernetes' typed clients send it: Helm keeps its releases in such. Only what is read
here of protobuf's wire format and of Kubernetes' envelope around it."""

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\x00"


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every field that has a length; numbers are skipped."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            length, at = _varint(data, at)
            yield tag >> 3, data[at : at + length]
            at += length
        elif tag & 7 == 0:
            _, at = _varint(data, at)
        else:
            raise ValueError(f"wire type {tag & 7} is not read here")


def _entry(data: bytes) -> tuple[str, bytes]:
    parts = dict(_fields(data))
    return parts.get(1, b"").decode(), parts.get(2, b"")


def secret(body: bytes) -> dict[str, Any]:
    """As the JSON object that it stands for."""
    raw = dict(_fields(body.removeprefix(MAGIC)))[2]
    fields = list(_fields(raw))
    metadata = list(_fields(dict(fields)[1]))
    labels = dict(_entry(data) for number, data in metadata if number == 11)
    data = dict(_entry(data) for number, data in fields if number == 2)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": dict(metadata)[1].decode(),
            "labels": {name: value.decode() for name, value in labels.items()},
        },
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        "type": dict(fields)[3].decode(),
    }
