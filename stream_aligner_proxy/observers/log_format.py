"""Log lines, one for each record, as JSON or as text. No text of a client can become a line.

An exception's own message may repeat what a client or a model wrote; so of an exception only its
type and where it was raised are told, unless content was asked for.
"""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

from stream_aligner_proxy.observers.replies import current

_log = logging.getLogger(__name__)

Style = Literal["auto", "text", "json"]

# Whatever some terminal or log reader takes for the end of a line, or for a command.
_OURS = __name__.partition(".")[0]
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DEEPEST = 5


class LineFormatter(logging.Formatter):
    """`extra={"fields": {...}}` of a record become fields of the line; None values are left out."""

    def __init__(self, *, as_json: bool, content: bool = False) -> None:
        super().__init__()
        self._as_json = as_json
        self._content = content

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        message = self._message(record)
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at += f".{int(record.msecs):03}Z"
        level = record.levelname.lower()
        if self._as_json:
            # What everything has comes last in the merge: no field can replace it.
            own = {"time": at, "level": level, "logger": record.name, "message": message}
            return json.dumps({**own, "pid": os.getpid(), **fields, **own}, default=str)
        told = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        return f"{at} {level} {record.name}: {_escaped(message)}{told}"

    def _message(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - logging itself would print the arguments, in many lines
            return str(record.msg)
        if record.name == "asyncio" and not self._content:
            # What follows shows the task, and with it its exception's message.
            return message.split("\n", 1)[0]
        return message.rstrip("\n")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if (told := current.get()) is not None:
            fields["request_id"] = told.request_id
        given = getattr(record, "fields", None)
        if isinstance(given, Mapping):
            fields.update((name, value) for name, value in given.items() if value is not None)
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = described(record.exc_info[1], content=self._content)
        return fields


def described(error: BaseException, *, content: bool = False, depth: int = 0) -> dict[str, Any]:
    """An exception as a field: its type, its frames (innermost last), and what led to it."""
    told: dict[str, Any] = {"type": type(error).__qualname__}
    if content:
        told["message"] = str(error)
    elif isinstance(error, OSError) and error.strerror:
        told["message"] = error.strerror
    told["traceback"] = _frames(error.__traceback__)
    if depth == _DEEPEST:
        return told
    if isinstance(error, BaseExceptionGroup):
        told["group"] = [
            described(one, content=content, depth=depth + 1) for one in error.exceptions[:_DEEPEST]
        ]
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        told["cause"] = described(before, content=content, depth=depth + 1)
    return told


def _frames(trace: TracebackType | None) -> list[str]:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename}:{trace.tb_lineno} {code.co_qualname}")
        trace = trace.tb_next
    return frames


def _plain(value: object) -> str:
    """A value in a line of text: quoted where it could be taken for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[\w./:@*+-]+", value, re.ASCII):
        return value
    return json.dumps(value, default=str)


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def configure(level: str, *, style: Style = "auto", content: bool = False) -> None:
    """Send all logs of the process to stderr. `auto` is text on a terminal, which somebody reads,
    and JSON otherwise, where a program does."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(as_json=as_json, content=content))
    number = logging.getLevelNamesMapping()[level.upper()]
    # Other libraries' debug lines hold headers, keys among them: only our own are let through.
    root = logging.getLogger()
    for before in [one for one in root.handlers if isinstance(one.formatter, LineFormatter)]:
        root.removeHandler(before)
    root.addHandler(handler)
    root.setLevel(max(number, logging.INFO))
    logging.getLogger(_OURS).setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = _unhandled
    threading.excepthook = lambda args: _unhandled(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )
    # Their lines below this level hold full addresses of upstreams and aligners.
    for client in ("aiohttp", "httpx2", "httpcore2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    if content:
        _log.warning("server.log_content is on: the log holds what clients ask and models write")


def _unhandled(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    elif not issubclass(kind, SystemExit):
        _log.critical("unhandled exception", exc_info=(kind, error, trace))
