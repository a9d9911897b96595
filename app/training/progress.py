"""How far a run has come, in words of the API: made of its phase and of what its child tells. In memory only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from app.core.records import RunPhase

SHARES: Final[Mapping[RunPhase, tuple[float, float]]] = {
    "waiting": (0, 0),
    "snapshot": (0, 2),
    "prepare": (2, 10),
    "train": (10, 70),
    "export": (70, 73),
    "gate": (73, 98),
    "promote": (98, 100),
    "done": (100, 100),
}
"""From which to which percent a phase takes a run, as it is with a small model; a guess for all others."""
_CHILDS: Final = frozenset({"prepare", "train", "export"})
_FIGURES: Final = ("step", "steps", "loss", "tokens_per_s", "eta_s")


class Progress:
    """The progress of one run. ``stored``: what its row said last."""

    def __init__(self, stored: Mapping[str, Any], phase: RunPhase) -> None:
        self._figures = {name: stored[name] for name in _FIGURES if _is_number(stored.get(name))}
        self.phase: RunPhase = phase
        self.detail: str | None = None
        """What it waits for, in words."""
        self.paused = False
        self._share = 0.0

    def enter(self, phase: RunPhase) -> None:
        """Another phase begins."""
        self.phase, self.detail, self.paused, self._share = phase, None, False, 0.0
        self._figures.pop("eta_s", None)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes an event of the child; what it does not know, or what is no number, is passed over."""
        name = event["event"]
        if name == "phase" and event.get("phase") in _CHILDS & set(get_args(RunPhase)):
            self.enter(cast("RunPhase", event["phase"]))
        elif name == "step":
            self._figures |= {each: event[each] for each in _FIGURES if _is_number(event.get(each))}

    def judged(self, done: int, all_: int) -> None:
        """The gate has asked so many of its questions."""
        self._share = min(done / all_, 1.0) if all_ > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """As rows and the API have it."""
        found: dict[str, Any] = {"phase": self.phase, "percent": self._percent(), **self._figures, "paused": self.paused}
        return found if self.detail is None else {**found, "detail": self.detail}

    def _percent(self) -> float:
        low, high = SHARES[self.phase]
        step, steps = self._figures.get("step", 0), self._figures.get("steps", 0)
        done = min(step / steps, 1.0) if self.phase == "train" and steps > 0 else self._share
        return round(low + (high - low) * done, 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
