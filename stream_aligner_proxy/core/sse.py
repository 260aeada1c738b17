"""Server-sent events, decoded from bytes as they arrive. Pure: no I/O, no clock. What upstreams
and remote aligners send is read with it.

Follows the event stream format of the HTML standard (WHATWG, section 9.2.6). Three things differ
on purpose: events stay bytes (the JSON parser checks their UTF-8), `id` and `retry` are ignored,
and `flush` hands out an event whose closing blank line never came, because some servers omit it;
if it was cut off in the middle its JSON is invalid and the caller notices.

Own code because line iterators for text also break at U+2028, U+0085 and the like, which are
ordinary characters here and may stand inside JSON strings.

Rule: the events do not depend on how the bytes were cut into chunks.
"""

from dataclasses import dataclass

from stream_aligner_proxy.core.errors import UpstreamGarbled

MAX_EVENT_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its data lines joined by LF, and its type ("" where none was given)."""

    data: bytes
    event: str = ""


class _Lines:
    """Cuts bytes into lines at LF, CRLF or CR, without their ends.

    A CR ends its line at once, so an event is never held back until the byte after it arrives; an
    LF that follows in the next chunk is skipped.
    """

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._skip_lf = False
        self._start = True

    def feed(self, data: bytes) -> list[bytes]:
        if self._skip_lf and data:
            self._skip_lf = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._partial:
            self._partial.append(lines[0])
            lines[0] = b"".join(self._partial)
            self._partial, self._partial_size = [], 0
        if rest:
            self._partial.append(rest)
            self._partial_size += len(rest)
        if lines and self._start:
            self._start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    @property
    def pending(self) -> int:
        """Bytes of the line that has not ended."""
        return self._partial_size

    def flush(self) -> bytes:
        """The line that has not ended; the input is over."""
        rest = b"".join(self._partial)
        self._partial, self._partial_size = [], 0
        return rest.removeprefix(_BOM) if self._start else rest


def _too_long(limit: int) -> UpstreamGarbled:
    return UpstreamGarbled(f"the server sent an event of more than {limit} bytes")


class SseDecoder:
    """Bytes in, events out.

    Raises `UpstreamGarbled` for an event of more than `max_event_bytes`, in the call after the one
    that returned the events before it (or at once, where there were none).
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size = 0
        self._event = b""
        self._error: UpstreamGarbled | None = None

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes."""
        self._check()
        events: list[SseEvent] = []
        for line in self._lines.feed(data):
            if line:
                if self._size + len(line) > self._limit:
                    return self._fail(events)
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        if self._lines.pending and self._size + self._lines.pending > self._limit:
            return self._fail(events)
        return events

    def flush(self) -> list[SseEvent]:
        """The input is over: the event that was not closed by a blank line, if any."""
        self._check()
        if line := self._lines.flush():
            self._field(line)
        event = self._dispatch()
        return [] if event is None else [event]

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, events: list[SseEvent]) -> list[SseEvent]:
        self._error = _too_long(self._limit)
        if not events:
            raise self._error
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if not name:  # a comment: nothing is kept, so nothing is counted
            return
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        self._size += len(line) + 1

    def _dispatch(self) -> SseEvent | None:
        data, event = self._data, self._event
        self._event = b""
        self._size = 0
        if not data:
            return None
        self._data = []
        joined = data[0] if len(data) == 1 else b"\n".join(data)
        return SseEvent(joined, event.decode("utf-8", "replace") if event else "")


class SseFrames:
    """Bytes in, complete frames out, for relaying: comments and all fields are kept.

    A frame is the lines up to a blank line, each ended by LF, and that blank line. Same limit and
    error as `SseDecoder`.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._lines = _Lines()
        self._frame: list[bytes] = []
        self._size = 0
        self._error: UpstreamGarbled | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes."""
        if self._error is not None:
            raise self._error
        frames: list[bytes] = []
        for line in self._lines.feed(data):
            if line:
                if self._size + len(line) > self._limit:
                    return self._fail(frames)
                self._frame.append(line)
                self._size += len(line) + 1
            elif self._frame:
                self._frame.append(b"\n")
                frames.append(b"\n".join(self._frame))
                self._frame, self._size = [], 0
        if self._lines.pending and self._size + self._lines.pending > self._limit:
            return self._fail(frames)
        return frames

    def flush(self) -> bytes:
        """What is left when the input is over: a frame without its blank line, or nothing."""
        if line := self._lines.flush():
            self._frame.append(line)
        rest, self._frame = b"\n".join(self._frame), []
        return rest

    def _fail(self, frames: list[bytes]) -> list[bytes]:
        self._error = _too_long(self._limit)
        if not frames:
            raise self._error
        return frames
