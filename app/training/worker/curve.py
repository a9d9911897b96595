"""The loss curve as a picture, ``loss.png``. Light enough to be drawn while a run goes on; a failing one stops nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_log = logging.getLogger(__name__)

_EVERY_S: Final = 10.0
_SHARE: Final = 50
"""Drawing takes at most one part in so many of the time."""
_MOST_POINTS: Final = 1000


class Curve:
    """Points of one run, and the file that shows them.

    Args:
        path: the picture.
        events: steps of earlier processes of this run; of steps that stand there twice the later one counts.
    """

    def __init__(self, path: Path, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self._path = path
        self._points: dict[int, Mapping[str, Any]] = {}
        self._next = time.monotonic() + _EVERY_S
        for event in events:
            if event.get("event") == "step" and isinstance(event.get("step"), int):
                self._points[event["step"]] = event

    def cut(self, step: int) -> None:
        """Forgets what came after ``step``: the run goes on from there."""
        self._points = {number: point for number, point in self._points.items() if number <= step}

    def add(self, step: Mapping[str, Any]) -> None:
        """A step, with the fields of its event; draws when it is time."""
        self._points[step["step"]] = step
        if time.monotonic() >= self._next:
            try:
                self.draw()
            except OSError as error:
                _log.warning("the loss curve cannot be drawn: %s", error.strerror)
                self._next = time.monotonic() + _EVERY_S

    def draw(self) -> None:
        """Writes the picture anew. Raises OSError."""
        began = time.monotonic()
        points = [point for _, point in sorted(self._points.items())]
        points = points[:: max(1, -(-len(points) // _MOST_POINTS))]
        if points:
            fresh = self._path.with_suffix(".new.png")
            _draw(fresh, points)
            os.replace(fresh, self._path)
        ended = time.monotonic()
        self._next = ended + max(_EVERY_S, _SHARE * (ended - began))


def _draw(path: Path, points: Sequence[Mapping[str, Any]]) -> None:
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rewarded = [point for point in points if point.get("rewards")]
    names = sorted({name for point in rewarded for name in point["rewards"]})
    figure = Figure(figsize=(8, 6 if names else 4), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(2 if names else 1, 1, squeeze=False, sharex=True)[:, 0])
    axes[0].plot([point["step"] for point in points], [point["loss"] for point in points], color="tab:blue", linewidth=1)
    axes[0].set_ylabel("loss")
    for name in names:
        shown = [point for point in rewarded if name in point["rewards"]]
        axes[1].plot([each["step"] for each in shown], [each["rewards"][name] for each in shown], label=name, linewidth=1)
    if names:
        axes[1].set_ylabel("rewards")
        axes[1].legend(fontsize="small")
    for axis in axes:
        axis.grid(visible=True, alpha=0.3)
    axes[-1].set_xlabel("step")
    figure.savefig(path, metadata={"Software": None})
