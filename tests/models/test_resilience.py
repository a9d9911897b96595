"""Breakers, the retry budget and the classes of failure: by hand, and by thousands of seeded histories."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from app.core import errors
from app.core.errors import AprendizError
from app.models.resilience import (
    LONGEST_COOL_DOWN_S,
    LONGEST_OPEN_S,
    OPENS_AFTER,
    Breaker,
    BreakerState,
    Permit,
    RetryBudget,
    backoff_s,
    class_of,
    is_failure,
    worth_another_try,
)

NOW = 1000.0


def entered(breaker: Breaker, now: float = NOW) -> Permit:
    permit = breaker.enter(now)
    assert permit is not None
    return permit


def fail(breaker: Breaker, times: int, now: float = NOW) -> None:
    for _ in range(times):
        breaker.failed(entered(breaker, now), now, "timeout")


def opened() -> Breaker:
    breaker = Breaker()
    fail(breaker, OPENS_AFTER)
    return breaker


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    breaker = Breaker()
    fail(breaker, 4)
    breaker.succeeded(entered(breaker))
    fail(breaker, 4)
    assert breaker.state(NOW) is BreakerState.CLOSED
    assert breaker.failed(entered(breaker), NOW, "unreachable")
    assert breaker.state(NOW) is BreakerState.OPEN
    assert breaker.enter(NOW + 29.9) is None
    assert breaker.wait_s(NOW) == 30
    assert breaker.reason == "unreachable"


def test_after_thirty_seconds_one_probe_goes_and_its_first_piece_lets_the_others_in() -> None:
    breaker = opened()
    assert breaker.state(NOW + 30) is BreakerState.HALF_OPEN
    probe = entered(breaker, NOW + 30)
    assert breaker.enter(NOW + 30) is None
    assert breaker.wait_s(NOW + 30) > 0
    breaker.answering(probe)
    other = entered(breaker, NOW + 30)
    assert breaker.state(NOW + 30) is BreakerState.CLOSED
    assert breaker.failed(other, NOW + 31, "error"), "it has not proved itself yet: one more failure opens it again"
    assert breaker.enter(NOW + 60) is None
    assert breaker.wait_s(NOW + 31) == 60


def test_a_probe_that_answers_to_the_end_forgives_everything() -> None:
    breaker = opened()
    breaker.succeeded(entered(breaker, NOW + 30))
    fail(breaker, 4, NOW + 31)
    assert breaker.state(NOW + 31) is BreakerState.CLOSED
    fail(breaker, 1, NOW + 31)
    assert breaker.wait_s(NOW + 31) == 30


def test_a_failed_probe_doubles_the_pause_up_to_sixty_seconds() -> None:
    breaker = opened()
    now = NOW
    waits = []
    for _ in range(4):
        now += breaker.wait_s(now)
        assert breaker.failed(entered(breaker, now), now, "timeout")
        waits.append(breaker.wait_s(now))
    assert waits == [60, 60, 60, 60]


def test_a_probe_whose_caller_left_makes_room_for_the_next() -> None:
    breaker = opened()
    breaker.withdraw(entered(breaker, NOW + 30))
    assert breaker.state(NOW + 30) is BreakerState.HALF_OPEN
    assert entered(breaker, NOW + 30).probe


def test_what_began_before_it_opened_changes_nothing() -> None:
    breaker = Breaker()
    early = [entered(breaker) for _ in range(20)]
    for permit in early[:10]:
        breaker.failed(permit, NOW, "timeout")
    assert breaker.wait_s(NOW) == 30
    for permit in early[10:15]:
        assert not breaker.failed(permit, NOW + 20, "timeout")
    breaker.succeeded(early[15])
    assert breaker.wait_s(NOW + 20) == 10, "a late answer of before is no probe"


def test_a_permit_counts_once() -> None:
    breaker = Breaker()
    permit = entered(breaker)
    for _ in range(10):
        breaker.failed(permit, NOW, "timeout")
    assert breaker.state(NOW) is BreakerState.CLOSED


def test_a_pause_that_was_asked_for_is_kept_bounded_and_no_failure() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker.cool(Permit(probe=False), NOW, 7)
    assert breaker.enter(NOW + 6.9) is None
    assert breaker.state(NOW + 6.9) is BreakerState.OPEN
    assert breaker.state(NOW + 7) is BreakerState.CLOSED
    breaker.cool(entered(breaker, NOW + 7), NOW + 7, 86_400)
    assert breaker.wait_s(NOW + 7) == LONGEST_COOL_DOWN_S
    assert breaker.reason == "busy"


@pytest.mark.parametrize("seed", range(200))
def test_any_history_keeps_the_rules(seed: int) -> None:
    """Random calls, outcomes and pauses against the rules as they stand in the documents."""
    rng = random.Random(seed)
    breaker = Breaker()
    now, running, row, opened_at, is_open = NOW, list[Permit](), 0, -1e9, False
    failing = rng.random()
    for _ in range(400):
        now += rng.choice((0.0, 0.1, 1.0, 5.0, 31.0)) * rng.random()
        if rng.random() < 0.6:
            before = breaker.state(now)
            permit = breaker.enter(now)
            if permit is None:
                assert 0 < breaker.wait_s(now) <= max(LONGEST_OPEN_S, LONGEST_COOL_DOWN_S)
            else:
                assert before is not BreakerState.OPEN
                assert permit.probe is (before is BreakerState.HALF_OPEN)
                assert not permit.probe or not any(each.probe and not each.returned for each in running)
                running.append(permit)
        elif running:
            permit = running.pop(rng.randrange(len(running)))
            match rng.choices(("fail", "ok", "leave", "cool"), (failing, 1 - failing, 0.1, 0.05))[0]:
                case "fail":
                    row += not is_open
                    if breaker.failed(permit, now, "error"):
                        assert permit.probe or row >= OPENS_AFTER
                        opened_at, row, is_open = now, 0, True
                case "ok":
                    breaker.succeeded(permit)
                    is_open = is_open and not permit.probe
                    row = row if is_open else 0
                case "leave":
                    breaker.withdraw(permit)
                case "cool":
                    breaker.cool(permit, now, rng.random() * 100)
        if breaker.state(now) is BreakerState.HALF_OPEN:
            assert is_open and now - opened_at >= 30
    for permit in running:
        breaker.withdraw(permit)
    assert breaker.enter(now + 61) is not None, "nobody is left alone for ever"


@pytest.mark.parametrize("seed", range(50))
def test_retries_stay_within_a_fifth_of_what_runs_or_three(seed: int) -> None:
    rng = random.Random(seed)
    budget = RetryBudget()
    most = 0
    for _ in range(2000):
        active = rng.randrange(200)
        if rng.random() < 0.6:
            allowed = max(3.0, 0.2 * active)
            before = budget.retrying
            assert budget.enter(active) is (before + 1 <= allowed)
        elif budget.retrying:
            budget.leave()
        most = max(most, budget.retrying)
    assert 3 <= most <= 40


def test_pauses_grow_are_bounded_and_never_equal() -> None:
    rng = random.Random(1)
    for tries, (low, high) in enumerate(((0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.8, 1.6), (1.0, 2.0), (1.0, 2.0)), start=1):
        waits = [backoff_s(tries, None, rng) for _ in range(200)]
        assert all(low <= wait <= high for wait in waits)
        assert len(set(waits)) == 200
    assert all(4 <= backoff_s(1, 4, rng) <= 4.5 for _ in range(200)), "what was asked for is waited for"


def tree(kind: type[AprendizError] = AprendizError) -> Iterator[type[AprendizError]]:
    """The errors of `app.core.errors`; a layer may have some of its own below them."""
    if kind.__module__ == "app.core.errors":
        yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def test_every_error_has_its_class() -> None:
    named = {
        errors.UpstreamTimeout: "timeout",
        errors.UpstreamUnreachable: "unreachable",
        errors.UpstreamRefused: "refused",
        errors.UpstreamError: "error",
        errors.UpstreamBusy: "busy",
        errors.UpstreamCoolingDown: "busy",
        errors.Overloaded: "busy",
        errors.EngineUnavailable: "engine",
        errors.ModelLoadFailed: "engine",
        errors.UnknownModel: "error",
    }
    assert {kind: class_of(kind()) for kind in tree()} == {kind: named.get(kind) for kind in tree()}
    again = {kind for kind in tree() if worth_another_try(kind())}
    assert again == {errors.UpstreamTimeout, errors.UpstreamUnreachable, errors.UpstreamError, errors.UpstreamBusy}
    assert {kind for kind in tree() if is_failure(kind())} == again | {errors.UpstreamRefused}
