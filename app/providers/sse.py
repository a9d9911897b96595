"""Server-sent events, read from bytes as they arrive. Bounded; knows nothing of what the events mean."""

from __future__ import annotations

MAX_EVENT_BYTES = 4 << 20


class EventTooLarge(ValueError):
    """A line or event passed the bound; the stream cannot be followed further."""


class SseParser:
    """Takes chunks split anywhere; gives the ``data`` of each whole event.

    Lines may end in LF or CR LF. Comments, ``event``, ``id`` and ``retry`` fields are skipped: the OpenAI and Anthropic formats
    say all they mean in ``data``. A lone CR as a line end, which the specification allows, is not supported: nobody sends it.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that ``chunk`` completes. Raises EventTooLarge."""
        if self._partial_bytes or self._data or len(chunk) > self._max or not chunk.endswith(b"\n\n") or b"\r" in chunk:
            return self._lines(chunk)
        if chunk.startswith(b"data: "):  # the usual case: whole events of one line each
            events = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(events):
                return events
        events = []  # else most have one line of data, perhaps with a name before it
        for block in chunk.split(b"\n\n"):
            line = block.partition(b"\n")[2] if block.startswith(b"event: ") else block
            if line.startswith(b"data: ") and b"\n" not in line:
                events.append(line[6:])
            elif block:
                events += self._lines(block + b"\n\n")
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        first, newline, rest = chunk.partition(b"\n")
        self._partial.append(first)
        self._partial_bytes += len(first)
        if self._partial_bytes > self._max:
            raise EventTooLarge
        if not newline:
            return []
        *lines, tail = rest.split(b"\n")
        lines.insert(0, b"".join(self._partial))
        self._partial, self._partial_bytes = [tail], len(tail)
        if len(tail) > self._max:
            raise EventTooLarge
        events: list[bytes] = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> bytes | None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            if not self._data:
                return None
            event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            self._data, self._data_bytes = [], 0
            return event
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
            self._data.append(value)
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._max:
                raise EventTooLarge
        return None
