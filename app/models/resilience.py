"""What keeps a failing target from harming anybody else: the classes of failure, a breaker a target, and one retry budget.

Plain state machines: no task, no timer, no clock of their own, so that a simulation can drive them through any history. They
know no model and no route; `app.models.tries` asks them.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Final

from app.core.errors import (
    AprendizError,
    EngineUnavailable,
    ModelLoadFailed,
    Overloaded,
    UnknownModel,
    UpstreamBusy,
    UpstreamCoolingDown,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from app.core.settings import FallbackClass

OPENS_AFTER: Final = 5
FIRST_OPEN_S: Final = 30.0
LONGEST_OPEN_S: Final = 60.0
LONGEST_COOL_DOWN_S: Final = 60.0
_PROBING_S: Final = 1.0

RETRY_SHARE: Final = 0.2
RETRIES_AT_LEAST: Final = 3

LONGEST_WAIT_S: Final = 10.0
"""A provider that asks for a longer pause than this is not waited for; its caller is told."""
_FIRST_BACKOFF_S: Final = 0.2
_LONGEST_BACKOFF_S: Final = 2.0

_CLASSES: Final[tuple[tuple[type[AprendizError], FallbackClass], ...]] = (
    (UpstreamTimeout, "timeout"),
    (UpstreamUnreachable, "unreachable"),
    (UpstreamRefused, "refused"),
    (UpstreamError, "error"),
    (UpstreamCoolingDown, "busy"),
    (Overloaded, "busy"),
    (EngineUnavailable, "engine"),
    (ModelLoadFailed, "engine"),
    (UnknownModel, "error"),
)


def class_of(error: AprendizError) -> FallbackClass | None:
    """The class of a failure that another target may survive; None: it is the caller's, or this service's own."""
    return next((name for kind, name in _CLASSES if isinstance(error, kind)), None)


def worth_another_try(error: AprendizError) -> bool:
    """Whether the same remote target may do better in a moment. A refused account, or one that cools down, will not."""
    return isinstance(error, UpstreamBusy | UpstreamError) and not isinstance(error, UpstreamRefused)


def is_failure(error: AprendizError) -> bool:
    """Whether it speaks against a remote target, and not against the one request."""
    return isinstance(error, UpstreamBusy | UpstreamError)


def backoff_s(tries: int, asked_s: float | None, rng: random.Random) -> float:
    """Seconds to wait before try number ``tries`` + 1 of the same target: what it asked for, else doubling; with jitter."""
    if asked_s is not None:
        return asked_s + rng.uniform(0.0, 0.1 * asked_s + 0.05)
    return rng.uniform(0.5, 1.0) * min(_FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 8), _LONGEST_BACKOFF_S)


class BreakerState(enum.IntEnum):
    """The value of the metric ``aprendiz_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(eq=False, slots=True)
class Permit:
    """One call that a breaker let through. It is handed back once: `Breaker.succeeded`, `failed`, `cool` or `withdraw`."""

    probe: bool
    returned: bool = False


class Breaker:
    """Leaves one target alone after five failures in a row.

    Open for 30 s it lets nobody through; then one probe goes. Where that fails it opens for twice as long, up to 60 s; where it
    begins to answer, everybody may go again. A target that asks for a pause (Retry-After) gets it, whatever it did before.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open_s = FIRST_OPEN_S
        self._open_until: float | None = None
        self._cool_until: float | None = None
        self._probe: Permit | None = None
        self.reason: FallbackClass | None = None
        """Class of the failure for which it was last left alone."""

    def state(self, now: float) -> BreakerState:
        """Closed, or open (cooling down too), or half open: the next call is a probe, or one runs."""
        if self._cool_until is not None and now < self._cool_until:
            return BreakerState.OPEN
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def wait_s(self, now: float) -> float:
        """Seconds until a call may go; 0: now."""
        wait = max((self._cool_until or now) - now, (self._open_until or now) - now, 0.0)
        return _PROBING_S if wait == 0.0 and self._probe is not None else wait

    def enter(self, now: float) -> Permit | None:
        """Lets a call through, or None: `wait_s` says for how long."""
        if self.wait_s(now) > 0:
            return None
        permit = Permit(probe=self._open_until is not None)
        if permit.probe:
            self._probe = permit
        return permit

    def answering(self, permit: Permit) -> None:
        """The target has begun to answer: a probe lets the others in. One more failure would open it again."""
        if self._probe is permit:
            self._probe = None
            self._open_until = None

    def succeeded(self, permit: Permit) -> None:
        """The target answered to the end, be it with a refusal of this one request."""
        if permit.returned:
            return
        permit.returned = True
        self.answering(permit)
        if self._open_until is None:
            self._failures = 0
            self._open_s = FIRST_OPEN_S

    def failed(self, permit: Permit, now: float, reason: FallbackClass) -> bool:
        """The target failed. Returns whether it is left alone from now on, and was not before."""
        if permit.returned:
            return False
        permit.returned = True
        if self._probe is permit:
            self._probe = None
        elif self._open_until is not None:
            return False  # begun before it opened: nothing new
        self._failures += 1
        if self._failures < OPENS_AFTER:
            return False
        self._open_until = now + self._open_s
        self._open_s = min(self._open_s * 2, LONGEST_OPEN_S)
        self.reason = reason
        return True

    def cool(self, permit: Permit, now: float, seconds: float) -> None:
        """The target asked to be left alone for so long; that is no failure."""
        if permit.returned:
            return
        self.withdraw(permit)
        self._cool_until = max(self._cool_until or now, now + min(seconds, LONGEST_COOL_DOWN_S))
        self.reason = "busy"

    def withdraw(self, permit: Permit) -> None:
        """The call ended without saying anything about the target: its caller left, say."""
        if permit.returned:
            return
        permit.returned = True
        if self._probe is permit:
            self._probe = None


class RetryBudget:
    """At most every fifth of the calls in flight may be a second try (three always may), so that retries never feed a storm."""

    def __init__(self) -> None:
        self._retrying = 0

    @property
    def retrying(self) -> int:
        """Second tries that have neither begun to answer nor failed."""
        return self._retrying

    def enter(self, active: int) -> bool:
        """Takes a place for one more try beside ``active`` calls; `leave` gives it back. False: there is none."""
        if self._retrying + 1 > max(RETRIES_AT_LEAST, RETRY_SHARE * active):
            return False
        self._retrying += 1
        return True

    def leave(self) -> None:
        """Gives a place back."""
        self._retrying -= 1
