"""The gate's promises in a short form; `aprendiz bench gate` is the long one. Seeds are fixed: what holds, holds always."""

from __future__ import annotations

import dataclasses
import random

import pytest

from app.training.gate import attempts, simulate, statistics, verdict
from app.training.gate.evidence import Evidence
from app.training.gate.simulate import SCENARIOS, Scenario, Tally

_TRIALS = 12


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a first attempt; most of the time goes into p-values that are far below any level."""
    monkeypatch.setattr(statistics, "_PERMUTATIONS", 400)


def scenario(part: str) -> Scenario:
    return next(each for each in SCENARIOS if part in each.says)


@pytest.mark.parametrize("each", [each for each in SCENARIOS if "20 attempts" not in each.says], ids=lambda each: each.says)
def test_promises(each: Scenario) -> None:
    tally = each.tally(_TRIALS, 1)
    # Few trials: one may go wrong that a thousand would forgive, except where none ever may.
    slack = 0 if each.bound == 0 else 2
    spoilt = tally.hits if each.at_most else tally.trials - tally.hits
    assert spoilt <= slack, f"{tally.hits} of {tally.trials}"


def test_repeated_attempts() -> None:
    tally = scenario("20 attempts on the same corrections").tally(16, 2)
    assert tally.trials == 8
    assert tally.hits <= 1


def test_without_spending_the_error_the_promise_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same level again and again on the same feedback: most series pass once. So the simulation would tell."""
    monkeypatch.setattr(attempts, "alpha", lambda number: 0.2)
    assert scenario("20 attempts on the same corrections").tally(12, 1).hits >= 4


def test_without_the_guard_the_side_property_sinks_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    each = scenario("52 points")
    assert each.tally(5, 1).hits == 0
    monkeypatch.setattr(verdict, "GUARD_LEVEL", -1.0)
    assert each.tally(5, 1).hits >= 3


def test_without_agreement_hostile_people_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    each = scenario("hostile correctors")
    assert each.tally(30, 1).hits == 0
    monkeypatch.setattr(verdict, "LIARS", 0.0)
    assert each.tally(30, 1).hits >= 1


def test_the_same_seed_gives_the_same_count() -> None:
    each = scenario("no gain, corrections")
    assert each.tally(30, 5) == each.tally(30, 5)


def test_a_broken_promise_is_told() -> None:
    each = dataclasses.replace(scenario("no gain, corrections"), bound=0.0)
    assert each.kept(Tally(0, 10))
    assert not each.kept(Tally(1, 10))


def test_series_end_with_the_first_pass() -> None:
    seen: list[int] = []

    def candidate(number: int) -> Evidence:
        seen.append(number)
        return simulate.corrected(random.Random(number), 20, 0.6 if number == 3 else -0.6, 0.01)

    assert simulate.passes_once(random.Random(0), candidate)
    assert seen == [0, 1, 2, 3]
