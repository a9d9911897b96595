"""From figures to a verdict with its reasons in words. Pure: the simulation runs this very code, and so can anybody.

A version passes where the held-out feedback shows that it is better (`_primary`) and no guard shows that it broke something.
The words name no text of users: a verdict is kept for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from app.training.gate.attempts import LEAST_GROUPS, Plan
from app.training.gate.evidence import Evidence, Guard, Guards, LevelGuard, LimitGuard, RateGuard, Sides, Unmeasured
from app.training.gate.statistics import (
    Interval,
    Primary,
    binomial_tail,
    interval,
    least_favourable,
    mean,
    mean_test,
    primary,
    sign_test,
    wilson,
)

FLOOR: Final = 0.55
"""The least chance to win that is worth a promotion: five points above no difference."""
LIARS: Final = 0.2
"""The share of people who may, all together, vote the opposite of what is right without getting a worse version through."""
GUARD_LEVEL: Final = 0.03
"""A guard fails where the loss is beyond its margin and that unlikely to be chance; half of it on either of two sides."""
LEAST_WANTED: Final = 5
"""Fewer wanted texts do not widen a guard's band."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verdict. ``bound``: what ``value`` must reach or not pass; of a band the end that is nearer."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    interval: Interval | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``primary``: the test of the held-out feedback, where there was enough for one; ``p_value``: what it was judged by."""

    passed: bool
    checks: tuple[Check, ...]
    p_value: float
    primary: Primary | None
    summary: str

    def to_json(self) -> dict[str, Any]:
        """``verdict``, ``summary`` and ``checks`` in their public form."""
        checks = [asdict(check) for check in self.checks]
        return {"verdict": "pass" if self.passed else "fail", "summary": self.summary, "checks": checks}


def decide(evidence: Evidence, guards: Guards, plan: Plan, *, seed: int = 0, draws: int = 1000) -> Verdict:
    """The verdict. ``draws``: of the bootstrap, which is for people to see and decides nothing.

    Blocks for some tenths of a second at 200 rows, so call it in a thread.
    """
    if not evidence.sound:
        words = "The held-out figures hold something that is no number, so nothing can be said of this version."
        return _verdict([Check("gain", False, words)], guards, 1.0, None)
    judged = evidence.settled().only(plan.groups)
    test = primary(judged, seed)
    if test.units < LEAST_GROUPS:
        words = (
            f"Too little held-out feedback to judge by: {test.units} comparisons, at least {LEAST_GROUPS} are needed. "
            "Collect more feedback, on other prompts and with upvotes as well as downvotes."
        )
        return _verdict([Check("gain", False, words, float(test.units), None, float(LEAST_GROUPS))], guards, 1.0, None)
    p = test.p if plan.first_p is None else max(test.p, plan.first_p)
    checks = _primary(judged, test, p, plan, interval(judged, seed, draws))
    return _verdict(checks, guards, p, test)


def _verdict(checks: list[Check], guards: Guards, p: float, test: Primary | None) -> Verdict:
    checks = [*checks, *map(judge_guard, guards.each)]
    bad = [check.name for check in checks if not check.passed]
    if bad:
        summary = f"Refused: {', '.join(bad)}."
    else:
        summary = f"Passed: better on held-out feedback, and none of {len(guards.each)} guards shows a loss."
    return Verdict(not bad, tuple(checks), p, test, summary)


def _primary(evidence: Evidence, test: Primary, p: float, plan: Plan, seen: Interval) -> list[Check]:
    kinds = ", ".join(f"{name} {each.rate:.0%} of {each.units}" for name, each in test.families.items())
    which = f"attempt {plan.number} on this feedback" + (", fresh prompts only" if plan.fresh else "")
    gain = Check(
        "gain",
        test.rate >= FLOOR,
        f"The candidate wins {test.rate:.0%} of {test.units} held-out comparisons ({kinds}); 50 % is no difference, "
        f"{FLOOR:.0%} is asked for.",
        test.rate,
        seen,
        FLOOR,
    )
    significance = Check(
        "significance",
        p <= plan.alpha,
        f"Chance alone would do as well with probability {p:.2g}; at most {plan.alpha:.2g} is allowed ({which}).",
        p,
        None,
        plan.alpha,
    )
    if not (gain.passed and significance.passed):
        return [gain, significance]
    liars, least = least_favourable(evidence, LIARS)
    if liars == 0:
        return [gain, significance]
    words = f"Had the {liars} most favourable of {len(evidence.raters)} people meant the opposite, it would win {least:.0%}."
    return [gain, significance, Check("agreement", least > 0.5, words + " More than 50 % is asked for.", least, None, 0.5)]


def judge_guard(guard: Guard) -> Check:
    """One guard's check."""
    match guard:
        case RateGuard():
            return _rate(guard)
        case LevelGuard():
            return _level(guard)
        case LimitGuard():
            return _limit(guard)
        case Unmeasured():
            return Check(guard.name, guard.passes, guard.reason)


@dataclass(frozen=True, slots=True)
class Band:
    """A guard's figures for people: what was, what is, what is wanted (None: nothing said of it), what is allowed."""

    name: str
    old: float
    new: float
    wanted: float | None
    low: float | None
    high: float | None


def band_of(guard: RateGuard | LevelGuard) -> Band | None:
    """The figures; None where there are none, or none that are numbers."""
    if not guard.new or len(guard.old) != len(guard.new) or (isinstance(guard, LevelGuard) and not guard.sound):
        return None
    old, wanted = mean(guard.old), _wanted(guard.wanted)
    ends = (0.0, 1.0) if isinstance(guard, RateGuard) else (-math.inf, math.inf)
    low, high = _band(old, _asked(old, wanted, guard.margin), guard.sides, guard.margin, ends)
    return Band(guard.name, old, mean(guard.new), wanted, *(None if math.isinf(end) else end for end in (low, high)))


def _rate(guard: RateGuard) -> Check:
    if not guard.new or len(guard.old) != len(guard.new):
        return Check(guard.name, False, "There is no answer of both versions to compare.")
    old, new = mean(guard.old), mean(guard.new)
    wanted = _wanted(guard.wanted)
    asked = _asked(old, wanted, guard.margin)
    bound = _band(old, asked, guard.sides, guard.margin, (0.0, 1.0))
    lost = _rate_lost(guard, old, new, asked, bound)
    words = _words(old, new, wanted, lost, bound, "{:.0%}")
    return Check(guard.name, lost is None, words, new, wilson(sum(guard.new), len(guard.new)), _nearer(new, bound))


def _rate_lost(guard: RateGuard, old: float, new: float, wanted: float | None, bound: Interval) -> str | None:
    """What is wrong, or None. The reference is the old version, or what people want where that lies further out."""
    level = _level_of(guard.sides)
    rises = sum(b and not a for a, b in zip(guard.old, guard.new, strict=True))
    falls = sum(a and not b for a, b in zip(guard.old, guard.new, strict=True))
    hits, trials = sum(guard.new), len(guard.new)
    if new < bound[0]:
        further = wanted is not None and wanted < old
        chance = binomial_tail(hits, trials, wanted) if further and wanted is not None else sign_test(falls, rises)
        return "too low" if chance <= level else None
    if new > bound[1]:
        further = wanted is not None and wanted > old
        chance = binomial_tail(trials - hits, trials, 1 - wanted) if further and wanted is not None else sign_test(rises, falls)
        return "too high" if chance <= level else None
    return None


def _level(guard: LevelGuard) -> Check:
    if not guard.new or len(guard.old) != len(guard.new):
        return Check(guard.name, False, "There is no figure of both versions to compare.")
    if not guard.sound:
        return Check(guard.name, False, "The figures hold something that is no number.")
    old, new, wanted = mean(guard.old), mean(guard.new), _wanted(guard.wanted)
    asked = _asked(old, wanted, guard.margin)
    bound = _band(old, asked, guard.sides, guard.margin, (-math.inf, math.inf))
    steps = [b - a for a, b in zip(guard.old, guard.new, strict=True)]
    lost: str | None = None
    if new < bound[0]:
        below = [asked - each for each in guard.new] if asked is not None and asked < old else [-each for each in steps]
        lost = "too low" if mean_test(below) <= _level_of(guard.sides) else None
    elif new > bound[1]:
        above = [each - asked for each in guard.new] if asked is not None and asked > old else steps
        lost = "too high" if mean_test(above) <= _level_of(guard.sides) else None
    spread = math.sqrt(mean([(each - new) ** 2 for each in guard.new]) / len(guard.new))
    seen = (new - 1.96 * spread, new + 1.96 * spread)
    words = _words(old, new, wanted, lost, bound, "{:.2f}" + (f" {guard.unit}" if guard.unit else ""))
    return Check(guard.name, lost is None, words, new, seen, _nearer(new, bound))


def _level_of(sides: Sides) -> float:
    return GUARD_LEVEL / 2 if sides == "both" else GUARD_LEVEL


def _wanted(values: Sequence[float]) -> float | None:
    return mean(values) if len(values) >= LEAST_WANTED else None


def _asked(old: float, wanted: float | None, margin: float) -> float | None:
    """``wanted`` where it asks for a change: what lies within the margin of what was is noise that would blunt the test."""
    return wanted if wanted is not None and abs(wanted - old) > margin else None


def _band(old: float, wanted: float | None, sides: Sides, margin: float, ends: Interval) -> Interval:
    """Where the new version may lie: between the old one and what people want, and ``margin`` beyond."""
    low, high = (old, old) if wanted is None else (min(old, wanted), max(old, wanted))
    return (
        ends[0] if sides == "up" else max(ends[0], low - margin),
        ends[1] if sides == "down" else min(ends[1], high + margin),
    )


def _nearer(value: float, bound: Interval) -> float:
    """The end of a band that the value is nearer to; never an open one, for infinity is no JSON."""
    return min(bound, key=lambda end: abs(end - value))


def _words(old: float, new: float, wanted: float | None, lost: str | None, bound: Interval, form: str) -> str:
    was, now = form.format(old), form.format(new)
    asked = "" if wanted is None else f", in what people asked for {form.format(wanted)}"
    low, high = (None if math.isinf(end) else form.format(end) for end in bound)
    allowed = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
    # Outside, and not failed: so few prompts cannot tell it from chance. It must not read as if it were inside.
    outside = ", which so few prompts cannot tell from chance" if lost is None and not bound[0] <= new <= bound[1] else ""
    return f"{was} before, {now} now{asked}; allowed: {allowed}{outside}" + ("." if lost is None else f": {lost}.")


def _limit(guard: LimitGuard) -> Check:
    if not math.isfinite(guard.value):
        return Check(guard.name, False, "The measured figure is no number.", None, None, guard.limit)
    passed = guard.value >= guard.limit if guard.at_least else guard.value <= guard.limit
    return Check(guard.name, passed, guard.detail, guard.value, None, guard.limit)
