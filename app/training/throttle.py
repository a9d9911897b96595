"""When a run may compute beside people who are being served: serving always wins, and a run still ends one day.

Pure: who asks brings the time. Nothing here knows of processes or signals.
"""

from __future__ import annotations

from typing import Final

QUIET_S: Final = 2.0
"""How long nobody must be served before a run goes on: shorter, and it would step in between two questions of one person."""
SLICE_S: Final = 1.0
"""What a run gets while people are served without a pause, out of every `EVERY_S` seconds."""
EVERY_S: Final = 10.0


class Throttle:
    """Says, asked again and again, whether the run may compute now. Seconds are monotonic."""

    def __init__(self, *, quiet_s: float = QUIET_S, slice_s: float = SLICE_S, every_s: float = EVERY_S) -> None:
        self._quiet_s = quiet_s
        self._slice_s = slice_s
        self._every_s = every_s
        self._served_at: float | None = None
        self._paused_at: float | None = None
        self._slice_until: float | None = None

    def may_run(self, now: float, *, busy: bool) -> bool:
        """Whether the run may compute; ``busy``: somebody is being served, or waits."""
        if busy:
            self._served_at = now
        if self._served_at is None or now - self._served_at >= self._quiet_s:
            self._paused_at = self._slice_until = None
            return True
        if self._slice_until is not None and now < self._slice_until:
            return True
        if self._paused_at is None or self._slice_until is not None:
            self._paused_at, self._slice_until = now, None
        elif now - self._paused_at >= self._every_s - self._slice_s:
            self._slice_until = now + self._slice_s
            return True
        return False
