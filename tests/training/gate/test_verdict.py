"""From figures to a verdict: what passes, what fails, and the words for it."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.training.gate.attempts import plan
from app.training.gate.evidence import (
    Correction,
    Evidence,
    Guard,
    Guards,
    LevelGuard,
    LimitGuard,
    RateGuard,
    Sides,
    Unmeasured,
)
from app.training.gate.verdict import Verdict, decide, judge_guard
from tests.training.gate.test_statistics import evidences


def judged(evidence: Evidence, *guards: Guard) -> Verdict:
    return decide(evidence, Guards(guards), plan(evidence.groups, (), "run"), draws=10)


def corrections(wins: int, losses: int = 0, ties: int = 0, people: int = 1) -> Evidence:
    gains = [0.4] * wins + [-0.4] * losses + [0.0] * ties
    return Evidence(tuple(Correction(f"g{at}", f"r{at % people}", 0.5, 0.5 + gain) for at, gain in enumerate(gains)))


def two_enthusiasts() -> Evidence:
    """Two of ten people saw thirty wins; the others, all together, a loss."""
    rows = [Correction(f"a{at}", f"r{at % 2}", 0.3, 0.9) for at in range(30)]
    rows += [Correction(f"b{at}", f"r{2 + at % 8}", 0.5, 0.9 if at % 5 < 2 else 0.1) for at in range(40)]
    return Evidence(tuple(rows))


def flags(true: int, count: int) -> tuple[bool, ...]:
    return tuple(at < true for at in range(count))


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


@pytest.mark.parametrize(
    ("evidence", "bad"),
    [
        (corrections(12), []),
        (corrections(11, 1), []),
        (corrections(9, 3), ["significance"]),
        (corrections(6, 6), ["gain", "significance"]),
        (corrections(0, 12), ["gain", "significance"]),
        (corrections(6, 0, 94), ["gain"]),
        (corrections(0, 0, 50), ["gain", "significance"]),
        (corrections(5), ["gain"]),
        (Evidence(), ["gain"]),
        (two_enthusiasts(), ["agreement"]),
        (corrections(20, people=10), []),
    ],
)
def test_primary(evidence: Evidence, bad: list[str]) -> None:
    verdict = judged(evidence)
    assert failed(verdict) == bad
    assert verdict.passed is not bool(bad)
    if bad:
        assert all(name in verdict.summary for name in bad)


def test_words() -> None:
    checks = {check.name: check.detail for check in judged(corrections(11, 1)).checks}
    assert "wins 92% of 12 held-out comparisons" in checks["gain"]
    assert "0.0032" in checks["significance"]
    assert "attempt 1" in checks["significance"]


@pytest.mark.parametrize(
    ("old", "new", "wanted", "sides", "passes"),
    [
        (40, 40, None, "down", True),
        (40, 36, None, "down", True),  # 10 points are no more than the margin
        (40, 26, None, "down", False),
        (20, 34, None, "down", True),
        (20, 34, None, "up", False),
        (20, 34, None, "both", False),
        (35, 14, None, "both", False),  # 87 % to 35 %, as measured
        (35, 14, (14, 40), "both", True),  # what people asked for
        (35, 14, (34, 40), "both", False),  # what nobody asked for
        (35, 14, (1, 4), "both", False),  # too few texts to ask for anything
        (35, 2, (20, 40), "both", False),  # further than they asked for
        (2, 38, (20, 40), "both", False),
        (2, 20, (20, 40), "both", True),
    ],
)
def test_rates(old: int, new: int, wanted: tuple[int, int] | None, sides: Sides, passes: bool) -> None:
    check = judge_guard(RateGuard("tone", flags(old, 40), flags(new, 40), flags(*wanted) if wanted else (), sides))
    assert check.passed is passes, check
    assert check.interval is not None
    assert check.value is not None
    assert check.interval[0] <= check.value <= check.interval[1]
    assert isinstance(check.bound, float)


def test_a_loss_that_may_be_chance_passes() -> None:
    """Of eight prompts two fewer: beyond the margin, and nothing to build on."""
    assert judge_guard(RateGuard("json", flags(6, 8), flags(4, 8))).passed
    assert not judge_guard(RateGuard("json", flags(8, 8), flags(2, 8))).passed


@pytest.mark.parametrize(
    ("old", "new", "wanted", "sides", "passes"),
    [
        (3.5, 3.5, None, "both", True),
        (3.5, 3.9, None, "both", True),
        (3.5, 4.5, None, "both", False),
        (3.5, 2.0, None, "both", False),
        (3.5, 2.0, 2.1, "both", True),
        (3.5, 4.5, 2.1, "both", False),
        (-2.0, -2.4, None, "down", True),
        (-2.0, -2.9, None, "down", False),
        (-2.0, -1.0, None, "down", True),
    ],
)
def test_levels(old: float, new: float, wanted: float | None, sides: Sides, passes: bool) -> None:
    drawn = random.Random(0)
    noise = [drawn.gauss(0, 0.3) for _ in range(40)]
    guard = LevelGuard(
        "length",
        tuple(old + each for each in noise),
        tuple(new + each + drawn.gauss(0, 0.2) for each in noise),
        () if wanted is None else (wanted,) * 10,
        sides,
        0.5,
    )
    check = judge_guard(guard)
    assert check.passed is passes, check


@pytest.mark.parametrize(
    "guard",
    [
        RateGuard("empty", (), ()),
        RateGuard("uneven", (True,), (True, False)),
        LevelGuard("empty", (), ()),
        LevelGuard("uneven", (1.0,), ()),
        LevelGuard("nan", (1.0,), (math.nan,)),
        LevelGuard("inf", (1.0, 2.0), (1.0, math.inf)),
        LevelGuard("wanted", (1.0,), (1.0,), (math.nan,) * 9),
        LimitGuard("nan", math.nan, 1.0),
        LimitGuard("inf", -math.inf, 1.0),
        LimitGuard("over", 2.0, 1.0),
        LimitGuard("under", 0.0, 1.0, at_least=True),
        Unmeasured("none", "not there", passes=False),
    ],
)
def test_guards_that_fail(guard: Guard) -> None:
    verdict = judged(corrections(12), guard)
    assert failed(verdict) == [guard.name]
    json.dumps(verdict.to_json(), allow_nan=False)


def test_guards_that_pass() -> None:
    assert judged(corrections(12), LimitGuard("a", 1.0, 1.0), Unmeasured("b", "no tools here", passes=True)).passed


def test_a_verdict_has_the_form_that_others_read() -> None:
    found = json.loads(json.dumps(judged(corrections(12), RateGuard("tone", flags(9, 9), flags(9, 9))).to_json()))
    assert found["verdict"] == "pass"
    for check in found["checks"]:
        assert set(check) == {"name", "value", "interval", "bound", "passed", "detail"}
        assert isinstance(check["bound"], float | None)


rates = st.integers(0, 20).flatmap(
    lambda count: st.builds(
        RateGuard,
        st.just("rate"),
        st.lists(st.booleans(), min_size=count, max_size=count).map(tuple),
        st.lists(st.booleans(), min_size=count, max_size=count).map(tuple),
        st.lists(st.booleans(), max_size=20).map(tuple),
        st.sampled_from(["down", "up", "both"]),
    )
)
anything = st.floats() | st.floats(-1e10, 1e10)
levels = st.builds(
    LevelGuard,
    st.just("level"),
    st.lists(anything, max_size=6).map(tuple),
    st.lists(anything, max_size=6).map(tuple),
    st.lists(anything, max_size=8).map(tuple),
    st.sampled_from(["down", "up", "both"]),
)
wild = st.builds(
    lambda evidence, bad: Evidence((*evidence.corrections, *(Correction("b", "r", each, 0.0) for each in bad))),
    evidences,
    st.lists(anything, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(evidences | wild, st.lists(rates | levels | st.builds(LimitGuard, st.just("limit"), anything, st.just(1.0)), max_size=4))
def test_never_raises_and_always_explains(evidence: Evidence, guards: list[Any]) -> None:
    verdict = judged(evidence, *guards)
    found = json.dumps(verdict.to_json(), allow_nan=False)
    assert found
    assert verdict.summary
    for check in verdict.checks:
        assert check.detail or check.name == "limit"
        if check.interval is not None and check.value is not None:
            assert check.interval[0] <= check.value <= check.interval[1]
    if not evidence.sound:
        assert not verdict.passed
