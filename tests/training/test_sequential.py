"""The test of live votes: it errs seldom however often one looks, it sees harm, and no one person decides."""

from __future__ import annotations

import random
import statistics

from app.training.sequential import MOST_PER_PERSON, THRESHOLD, Bets, Verdict, judge


def stream(control: float, new: float, share: float, length: int, rng: random.Random) -> list[float]:
    """The differences that a stream of votes gives, as `judge` pairs them when both sides come side by side."""
    waiting: tuple[list[bool], list[bool]] = ([], [])
    found = []
    for _ in range(length):
        side = rng.random() < share
        waiting[side].append(rng.random() < (new if side else control))
        if waiting[0] and waiting[1]:
            found.append(statistics.fmean(waiting[1]) - statistics.fmean(waiting[0]))
            waiting = ([], [])
    return found


def first_crossing(values: list[float]) -> int | None:
    """After how many values the wealth has reached the threshold for the first time: looked at after each."""
    bets = Bets()
    for number, value in enumerate(values, 1):
        bets.add(value)
        if bets.wealth >= THRESHOLD:
            return number
    return None


def test_equal_versions_are_called_harmful_in_5_percent_at_most_however_often_one_looks() -> None:
    rng = random.Random(1)
    cases = [(0.5, 0.5), (0.7, 0.5), (0.9, 0.5), (0.7, 0.1)]
    wrong = [
        first_crossing([-each for each in stream(rate, rate, share, 120, rng)]) is not None
        for rate, share in cases
        for _ in range(500)
    ]
    assert len(wrong) == 2000
    assert sum(wrong) / len(wrong) <= 0.05


def test_a_drift_of_both_and_a_worse_version_at_the_margin_are_no_error_either() -> None:
    rng = random.Random(2)
    wrong = 0
    for _ in range(300):
        values = [d for part in range(6) for d in stream(0.9 - 0.1 * part, 0.9 - 0.1 * part, 0.5, 20, rng)]
        wrong += first_crossing([-each for each in values]) is not None
    assert wrong / 300 <= 0.05
    wrong = sum(first_crossing([d + 0.1 for d in stream(0.7, 0.6, 0.5, 200, rng)]) is not None for _ in range(300))
    assert wrong / 300 <= 0.05, "worse by the margin must not pass as not worse"


def test_a_harm_of_30_points_shows_after_less_than_60_pairs() -> None:
    rng = random.Random(3)
    found = [first_crossing([-each for each in stream(0.8, 0.5, 0.5, 800, rng)]) for _ in range(200)]
    assert None not in found
    assert statistics.median(each for each in found if each is not None) < 45


def verdicts(control: str, new: str, *, people: int = 1000) -> list[Verdict]:
    """Of each letter one verdict: ``+`` or ``-``; the two sides in turn, everybody once unless there are few ``people``."""
    found = []
    for n in range(max(len(control), len(new))):
        found += [Verdict("control", f"c{n % people}", control[n] == "+")] if n < len(control) else []
        found += [Verdict("new", f"n{n % people}", new[n] == "+")] if n < len(new) else []
    return found


def test_harm_benefit_and_nothing() -> None:
    bad = judge(verdicts("+" * 30, "-" * 30), paired=False)
    assert (bad.harmful, bad.harmless, bad.alone) == (True, False, False)
    assert (bad.control_good, bad.control_bad, bad.new_good, bad.new_bad) == (30, 0, 0, 30)
    good = judge(verdicts("-" * 30, "+" * 30), paired=False)
    assert (good.harmful, good.harmless) == (False, True)
    for nothing in ([], verdicts("+-" * 10, "+-" * 10), verdicts("", "-" * 100), verdicts("+" * 100, "")):
        found = judge(nothing, paired=False)
        assert (found.harmful, found.harmless) == (False, False)


def test_history_is_set_against_the_new_one_by_one() -> None:
    history = [Verdict("control", f"c{n}", True) for n in range(40)]
    new = [Verdict("new", f"n{n}", False) for n in range(40)]
    assert judge(history + new, paired=True).harmful
    assert not judge(history[:3] + new, paired=True).harmful, "three votes are no rate"


def test_nobody_decides_alone() -> None:
    crowd = [Verdict("control", f"c{n}", True) for n in range(40)]
    alone = [Verdict("new", "mallory", False) for _ in range(40)]
    mixed = [each for pair in zip(crowd, alone, strict=True) for each in pair]
    found = judge(mixed, paired=False)
    assert found.new_bad == MOST_PER_PERSON
    assert not found.harmful
    # Just enough with one person's verdicts, and not without them.
    for count in range(1, 30):
        few = judge([*verdicts("+" * count, "-" * count, people=2)], paired=False)
        assert not few.harmful
