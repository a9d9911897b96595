"""What repeated tries cost: no piece of feedback is ever tested at more than the budget in all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.records import GateAttemptRecord
from app.training.gate.attempts import BUDGET, LEAST_GROUPS, Plan, alpha, plan


def record(run: str, step: Plan, p: float = 0.5) -> GateAttemptRecord:
    return GateAttemptRecord(run, datetime.now(UTC), run, tuple(sorted(step.groups)), step.alpha, p, False)


def names(count: int, first: int = 0) -> list[str]:
    return [f"g{each}" for each in range(first, first + count)]


def series(*sets: Sequence[str]) -> list[Plan]:
    kept: list[GateAttemptRecord] = []
    steps = []
    for number, groups in enumerate(sets):
        steps.append(plan(groups, kept, f"run{number}"))
        kept.append(record(f"run{number}", steps[-1]))
    return steps


def test_the_levels_sum_to_the_budget() -> None:
    assert alpha(1) == 0.02
    assert 0.03 < sum(map(alpha, range(1, 100_000))) < BUDGET < 0.05


def test_the_same_feedback_again_and_again() -> None:
    steps = series(*[names(20)] * 4)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert [step.alpha for step in steps] == [alpha(number) for number in (1, 2, 3, 4)]


def test_one_fresh_row_does_not_start_anew() -> None:
    steps = series(*[names(20 + number) for number in range(5)])
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]


def test_other_feedback_starts_anew() -> None:
    first, second = series(names(20), names(20, 100))
    assert (first.number, second.number) == (1, 1)


def test_enough_fresh_feedback_is_judged_alone() -> None:
    *_, fourth, fifth, sixth = series(*[names(20)] * 4, names(60), names(60))
    assert (fourth.number, fourth.fresh) == (4, False)
    assert (fifth.number, fifth.fresh, fifth.groups) == (1, True, frozenset(names(40, 20)))
    assert sixth.number == 5, "nothing is fresh, and some of it was judged four times"


def test_few_fresh_groups_among_many_old_ones_are_not_worth_it() -> None:
    first, second = series(names(100), names(100 + LEAST_GROUPS))
    assert first.number == 1
    assert (second.number, second.fresh, len(second.groups)) == (2, False, 100 + LEAST_GROUPS)


def test_the_most_used_group_counts() -> None:
    assert [step.number for step in series(["a"] * 1, ["a", "b"], ["b"], ["a", "c"])] == [1, 2, 2, 3]


def test_a_run_judged_again_keeps_number_and_level() -> None:
    kept: list[GateAttemptRecord] = []
    for number in range(3):
        kept.append(record(f"run{number}", plan(names(20), kept, f"run{number}"), p=0.3))
    again = plan(names(20), kept, "run1")
    assert (again.number, again.alpha, again.first_p) == (2, alpha(2), 0.3)


def test_no_groups() -> None:
    assert plan([], [], "run") == Plan(frozenset(), 1, alpha(1), False)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sets(st.integers(0, 40), min_size=1, max_size=40), min_size=1, max_size=25))
def test_no_group_is_ever_tested_at_more_than_the_budget(sets: list[set[int]]) -> None:
    steps = series(*[[f"g{each}" for each in sorted(groups)] for groups in sets])
    for group in {group for step in steps for group in step.groups}:
        assert sum(step.alpha for step in steps if group in step.groups) <= BUDGET * (1 + 1e-9)


@pytest.mark.parametrize("number", [1, 2, 5, 20])
def test_every_level_can_be_reached(number: int) -> None:
    """Twenty prompts that all win are enough even after twenty tries."""
    assert alpha(number) > 0.5**20
