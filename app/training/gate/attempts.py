"""What repeated tries on the same held-out feedback cost: the error is spent over them, and never more than `BUDGET` in all.

Attempt k on a piece of feedback is tested at ``FIRST / k ** 2``: 2 %, 0.5 %, 0.22 %, … The sum over any number of tries is
3.3 %, so that the promise of 5 % has some room. k is one more than the largest number of earlier attempts that any of the
groups was in, so a few fresh groups among old ones change nothing. Where there are enough fresh groups, only they are judged,
as a first attempt; counts alone decide which of the two promises more power.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from statistics import NormalDist
from typing import Final

from app.core.records import GateAttemptRecord

FIRST: Final = 0.02
BUDGET: Final = FIRST * pi**2 / 6
"""The sum of all levels."""
LEAST_GROUPS: Final = 6
"""Fewer groups are not judged: no outcome of theirs could convince."""
_PLANNED: Final = 0.5
"""Effect for which the choice between fresh and all groups is made, in standard deviations per group."""


def alpha(number: int) -> float:
    """The level of attempt ``number`` (from 1) on the same feedback."""
    return FIRST / number**2


@dataclass(frozen=True, slots=True)
class Plan:
    """Decided before any answer is looked at. ``number``: of this attempt on this feedback; ``fresh``: only new groups."""

    groups: frozenset[str]
    number: int
    alpha: float
    fresh: bool
    first_p: float | None = None
    """p-value of this run's first judgement: a run is judged once, a repetition can only make it worse."""


def plan(groups: Collection[str], attempts: Iterable[GateAttemptRecord], run_id: str) -> Plan:
    """Which of the held-out ``groups`` are judged, and at what level."""
    earlier = list(attempts)
    own = [attempt for attempt in earlier if attempt.run_id == run_id]
    if own and frozenset(own[0].groups) <= frozenset(groups):
        first = own[0]
        used = _used(earlier[: earlier.index(first)], run_id)
        number = 1 + max((used[group] for group in first.groups), default=0)
        return Plan(frozenset(first.groups), number, first.alpha, number == 1 and bool(used), max(a.p_value for a in own))
    used = _used(earlier, "")
    fresh = frozenset(group for group in groups if not used[group])
    number = 1 + max((used[group] for group in groups), default=0)
    if number > 1 and len(fresh) >= LEAST_GROUPS and _power(len(fresh), 1) >= _power(len(groups), number):
        return Plan(fresh, 1, alpha(1), True)
    return Plan(frozenset(groups), number, alpha(number), False)


def _used(attempts: Sequence[GateAttemptRecord], but: str) -> Counter[str]:
    """How many runs each group was judged on before."""
    seen = {(attempt.run_id, group) for attempt in attempts for group in attempt.groups if attempt.run_id != but}
    return Counter(group for _, group in seen)


def _power(groups: int, number: int) -> float:
    return _PLANNED * sqrt(groups) - NormalDist().inv_cdf(1 - alpha(number))
