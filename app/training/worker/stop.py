"""SIGTERM: end soon, with the work kept. The handler only notes it, except where waiting would take too long."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from app.training.worker.job import Cancelled


class Stop:
    """Whether the run is to end. Made in the main thread; `check` may be called in any."""

    def __init__(self) -> None:
        self._requested = False
        self._at_once = False

    def listen(self) -> None:
        """From now on SIGTERM asks for the end."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._requested

    def check(self) -> None:
        """Raises Cancelled once the end was asked for."""
        if self._requested:
            raise Cancelled

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, SIGTERM breaks off whatever the main thread does: for work that leaves nothing half done when it is left."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._at_once:
            self._at_once = False
            raise Cancelled
