"""Server-sent events, decoded from bytes as they arrive. Pure: no I/O, no clock. What upstreams
and remote aligners send is read with it.

Follows the event stream format of the HTML standard (WHATWG, section 9.2.6). Three things differ
on purpose: events stay bytes (the JSON parser checks their UTF-8), `id` and `retry` are ignored,
and `flush` hands out an event whose closing blank line never came, because some servers omit it;
if it was cut off in the middle its JSON is invalid and the caller notices.

Own code because line iterators for text also break at U+2028, U+0085 and the like, which are
ordinary characters here and may stand inside JSON strings.

Rule: the events do not depend on how the bytes were cut into chunks.

One read may hold one event or hundreds. What nearly all servers write, one `data: ` line and a
blank line, is cut out in one go; anything else goes line by line, to the same effect.
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


class _LineEnds:
    """Makes every LF, CRLF and CR an LF.

    A CR ends its line at once, so an event is never held back until the byte after it arrives; an
    LF that follows in the next chunk is skipped.
    """

    def __init__(self) -> None:
        self._skip_lf = False

    def feed(self, data: bytes) -> bytes:
        if self._skip_lf and data:
            self._skip_lf = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data


class _Lines:
    """Cuts bytes whose lines end with LF into lines, without their ends."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._start = True
        self.pending = 0  # bytes of the line that has not ended

    def feed(self, data: bytes) -> list[bytes]:
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._partial:
            self._partial.append(lines[0])
            lines[0] = b"".join(self._partial)
            self._partial, self.pending = [], 0
        if rest:
            self._partial.append(rest)
            self.pending += len(rest)
        if lines and self._start:
            self._start = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def skip(self) -> None:
        """Whole lines were taken past this."""
        self._start = False

    def flush(self) -> bytes:
        """The line that has not ended; the input is over."""
        rest = b"".join(self._partial)
        self._partial, self.pending = [], 0
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
        self._ends = _LineEnds()
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size = 0
        self._event = b""
        self._error: UpstreamGarbled | None = None

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes."""
        self._check()
        data = self._ends.feed(data)
        events: list[SseEvent] = []
        at = 0
        if self._lines.pending or self._data or self._event or self._size:
            # The event that was cut comes to its end at the first blank line.
            at = data.find(b"\n\n") + 2
            if at == 1:
                at = len(data)
            self._by_lines(data[:at], events)
        if at < len(data):
            *blocks, rest = data[at:].split(b"\n\n")
            for block in blocks:
                if self._error is not None:
                    break
                if block.startswith(b"data: ") and b"\n" not in block and len(block) <= self._limit:
                    self._lines.skip()
                    events.append(SseEvent(block[6:]))
                else:
                    self._by_lines(block + b"\n\n", events)
            self._by_lines(rest, events)
        if self._error is not None and not events:
            raise self._error
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

    def _by_lines(self, data: bytes, events: list[SseEvent]) -> None:
        if self._error is not None:
            return
        for line in self._lines.feed(data):
            if line:
                if self._size + len(line) > self._limit:
                    self._error = _too_long(self._limit)
                    return
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        if self._lines.pending and self._size + self._lines.pending > self._limit:
            self._error = _too_long(self._limit)

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
    """Bytes in, complete frames out, for relaying: nothing is taken apart.

    A frame is the lines up to a blank line, each ended by LF, and that blank line. All frames that
    came at once leave at once. Raises `UpstreamGarbled` where more than `max_event_bytes` wait for
    the end of their frame, in the call after the one that returned the frames before them.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = max_event_bytes
        self._ends = _LineEnds()
        self._held: list[bytes] = []
        self._size = 0
        self._start = True
        self._error: UpstreamGarbled | None = None

    def feed(self, data: bytes) -> bytes:
        """The frames that `data` completes, joined; empty where there are none."""
        if self._error is not None:
            raise self._error
        data = self._ends.feed(data)
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:  # not there, unless the border of two pieces stands between the two
            across = data[:1] == b"\n" and self._held and self._held[-1].endswith(b"\n")
            cut = 1 if across else 0
        whole = b""
        if cut:
            whole = b"".join([*self._held, data[:cut]]) if self._held else data[:cut]
            self._held, self._size = [], 0
            if self._start:
                self._start = False
                whole = whole.removeprefix(_BOM)
        if rest := data[cut:]:
            self._held.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                self._error = _too_long(self._limit)
                if not whole:
                    raise self._error
        return whole

    def flush(self) -> bytes:
        """What is left when the input is over: a frame without its blank line, or nothing."""
        rest, self._held = b"".join(self._held), []
        return rest.removeprefix(_BOM) if self._start else rest
