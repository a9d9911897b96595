"""The events of a run as a reader sees them: ``events.jsonl`` while it grows. Written by the child and by `phases`.

Nothing in it is trusted: a line may be damaged, endless or foreign; it is passed over and counted, and the run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

EVENTS: Final = "events.jsonl"
_PIECE: Final = 1 << 18
_MOST_LINE: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Heard:
    """One event. ``end``: the byte after its line, to go on from: it serves as the event's id."""

    end: int
    event: Mapping[str, Any]


class EventFile:
    """Reads a file of events in pieces. ``after``: the `Heard.end` to go on from; any number is safe."""

    def __init__(self, path: Path, *, after: int = 0) -> None:
        self._path = path
        self._at = max(after, 0)
        self._inside_endless = False
        self.skipped = 0
        """Lines that were no event."""

    def read(self) -> list[Heard]:
        """The next events; empty: none are there now. Reads at most a quarter of a megabyte. Raises OSError."""
        while True:
            piece, before = self._piece(), self._at
            found = self._heard(piece)
            if found or self._at == before:
                return found

    def _piece(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                # A mark from elsewhere may lie behind the end: then what comes next is read.
                self._at = min(self._at, os.fstat(file.fileno()).st_size)
                file.seek(self._at)
                return file.read(_PIECE)
        except FileNotFoundError:
            return b""

    def _heard(self, piece: bytes) -> list[Heard]:
        *lines, rest = piece.split(b"\n")
        found = []
        for line in lines:
            self._at += len(line) + 1
            event = None if self._inside_endless else _event(line)
            self._inside_endless = False
            if event is not None:
                found.append(Heard(self._at, event))
            else:
                self.skipped += 1
        if len(rest) > _MOST_LINE:
            self._at += len(rest)
            self._inside_endless = True
        return found


def note(path: Path, event: str, **fields: Any) -> None:
    """Appends an event, while no child does. Raises OSError."""
    line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields})
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (b"\n" if torn else b"") + line.encode() + b"\n")
    finally:
        os.close(fd)


def _event(line: bytes) -> Mapping[str, Any] | None:
    if len(line) > _MOST_LINE:
        return None
    try:
        event = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _refuse(_name: str) -> NoReturn:
    raise ValueError("not a number of JSON")
