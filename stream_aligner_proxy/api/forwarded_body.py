"""A body that is passed on unread but for its model's name. Pure.

JSON, or a form with files (RFC 7578). Where the upstream knows the model by another name, that
alone is changed.
"""

import json
import re
from dataclasses import dataclass

import orjson

from stream_aligner_proxy.api.schemas import parse_object
from stream_aligner_proxy.core.errors import RequestError

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s";,]+))', re.IGNORECASE)
# One after another, so that none is found inside the quotes of another.
_PARAMETER = re.compile(rb';\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s";]*))')
_MAX_PARTS = 1000
# A key `model` in any case and with any escapes.
_MODEL_KEY = re.compile(
    rb'"(?:m|\\u00[46]d)(?:o|\\u00[46]f)(?:d|\\u00[46]4)(?:e|\\u00[46]5)(?:l|\\u00[46]c)"\s*:',
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ForwardedBody:
    """`model`: None where none is named. `span`: where its name stands in a form's `content`."""

    content: bytes
    content_type: str
    model: str | None
    span: tuple[int, int] | None = None

    def naming(self, model: str) -> bytes:
        """The body with this model's name."""
        if model == (self.model or ""):
            return self.content
        if self.span is None:
            return orjson.dumps({**orjson.loads(self.content), "model": model})
        start, end = self.span
        return self.content[:start] + model.encode() + self.content[end:]


def read(content: bytes, content_type: str) -> ForwardedBody:
    """Raises `RequestError`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _form(content, content_type)
    if kind not in ("", "application/json"):
        raise RequestError(
            "The request body must be application/json or multipart/form-data.",
            status=415,
            code="unsupported_media_type",
        )
    body = parse_object(content)
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise _wrong_model()
    if len(_MODEL_KEY.findall(content)) > (model is not None) and _named_twice(content):
        raise _wrong_model()
    return ForwardedBody(content, "application/json", model)


def _named_twice(content: bytes) -> bool:
    """Whether another reader may find another model in a body that goes on as it is: JSON readers
    differ in which of two they take, and some take `Model` for `model`."""
    names: list[str] = []

    def read_pairs(pairs: list[tuple[str, object]]) -> None:
        names[:] = [name for name, _ in pairs]  # of the outermost object last

    json.loads(content, object_pairs_hook=read_pairs)
    return [name for name in names if name.casefold() == "model"] not in ([], ["model"])


def _form(content: bytes, content_type: str) -> ForwardedBody:
    found = _BOUNDARY.search(content_type)
    # The header goes on as it is: it must be one that a header can carry.
    if found is None or not (content_type.isascii() and content_type.isprintable()):
        raise _wrong_form("its content-type names no boundary")
    spans = _spans(content, (found[1] or found[2]).encode())
    if len(spans) > 1:
        raise _wrong_model()
    if not spans:
        return ForwardedBody(content, content_type, None)
    start, end = spans[0]
    try:
        model = content[start:end].decode()
    except UnicodeDecodeError:
        raise _wrong_model() from None
    if not model:
        raise _wrong_model()
    return ForwardedBody(content, content_type, model, (start, end))


def _spans(content: bytes, boundary: bytes) -> list[tuple[int, int]]:
    """Where the values of the fields called `model` stand."""
    delimiter = b"\r\n--" + boundary
    if content.startswith(delimiter[2:]):
        at = len(delimiter) - 2
    elif (at := content.find(delimiter)) >= 0:  # after a preamble
        at += len(delimiter)
    else:
        raise _wrong_form("its boundary is not in it")
    spans: list[tuple[int, int]] = []
    for _ in range(_MAX_PARTS):
        if content.startswith(b"--", at):
            return spans
        end = content.find(delimiter, at)
        head_end = content.find(b"\r\n\r\n", at, end)
        if end < 0 or head_end < 0:
            raise _wrong_form("a part of it does not end")
        for line in content[at:head_end].split(b"\r\n"):
            if line.lower().startswith(b"content-disposition:"):
                told = {name.lower(): a or b for name, a, b in _PARAMETER.findall(line)}
                if told.get(b"name") == b"model":
                    spans.append((head_end + 4, end))
        at = end + len(delimiter)
    raise _wrong_form(f"it has more than {_MAX_PARTS} parts")


def _wrong_form(why: str) -> RequestError:
    return RequestError(f"The request body is not a valid form: {why}.", code="invalid_form")


def _wrong_model() -> RequestError:
    return RequestError(
        "Invalid value for 'model': must be one name, and not empty.",
        param="model",
        code="invalid_value",
    )
