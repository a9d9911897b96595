"""The events of a run: one JSON object a line, appended to ``events.jsonl``, and a line for people on stderr.

A line is written with one call, so a reader never sees half of one while the writer lives; half a line that a killed writer
left behind is cut off by the next. Steps after the newest checkpoint come twice when a run was resumed: the last one counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

Kind = Literal["phase", "step", "checkpoint", "resumed", "note", "done", "failed", "cancelled"]

_TAIL = 1 << 16


class Events:
    """Writes events. Use as a context manager.

    Args:
        path: ``events.jsonl`` of the run, or None: nothing is written (all processes of a run but the first).
    """

    def __init__(self, path: Path | None) -> None:
        self._fd = -1 if path is None else os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._fd >= 0:
            _cut_torn_line(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, event: Kind, **fields: Any) -> None:
        """Appends an event. Raises OSError (disk full)."""
        if self._fd < 0:
            return
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "event": event, **fields}, ensure_ascii=False, allow_nan=False)
        os.write(self._fd, line.encode() + b"\n")
        print(_words(event, fields), file=sys.stderr, flush=True)  # noqa: T201 (the run's log)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file in order; what is no whole event is passed over. Empty where there is no file."""
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        return
    with lines:
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def _cut_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, min(size, _TAIL), max(0, size - _TAIL))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(fd, max(0, size - len(tail)) + tail.rfind(b"\n") + 1)


def _words(event: str, fields: Mapping[str, Any]) -> str:
    if event == "step":
        rate, left = fields["tokens_per_s"], fields["eta_s"]
        return f"step {fields['step']}/{fields['steps']}  loss {fields['loss']:.4f}  {rate:.0f} tokens/s  {left:.0f} s left"
    said = "  ".join(f"{name}={value}" for name, value in fields.items())
    return f"{event}  {said}" if said else event
