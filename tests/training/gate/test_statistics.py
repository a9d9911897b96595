"""The gate's tests and intervals: exact where a textbook says what must come out, and sound on any figures."""

from __future__ import annotations

import math
import random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.training.gate.evidence import Correction, Evidence, Pair, Vote
from app.training.gate.statistics import (
    Result,
    binomial_tail,
    effect,
    interval,
    least_favourable,
    mean_test,
    of_corrections,
    of_pairs,
    of_votes,
    primary,
    sign_test,
    stouffer,
    wilson,
)

_Row = TypeVar("_Row", Correction, Pair, Vote)

figures = st.floats(-1e8, 1e8) | st.sampled_from([0.0, 1.0, -1.0, 1e-300, -1e-300])
groups = st.sampled_from([f"g{each}" for each in range(12)])
raters = st.sampled_from([f"r{each}" for each in range(7)])
evidences = st.builds(
    Evidence,
    st.lists(st.builds(Correction, groups, raters, figures, figures), max_size=12).map(tuple),
    st.lists(st.builds(Pair, groups, raters, figures), max_size=12).map(tuple),
    st.lists(st.builds(Vote, groups, raters, st.booleans(), figures), max_size=20).map(tuple),
)


def shuffled(rows: tuple[_Row, ...], drawn: random.Random) -> tuple[_Row, ...]:
    return tuple(drawn.sample(rows, len(rows)))


def corrections(*gains: float) -> tuple[Correction, ...]:
    return tuple(Correction(f"g{at}", "ana", 0.3, 0.3 + gain) for at, gain in enumerate(gains))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(0, 0, 1.0), (5, 0, 1 / 32), (10, 2, 79 / 4096), (2, 28, 1.0), (41, 10, 7.37e-6), (500, 500, 0.5126)],
)
def test_sign_test_is_exact(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, rel=0.01)


def test_binomial_tail() -> None:
    assert binomial_tail(0, 10, 0.5) == pytest.approx(2**-10)
    assert binomial_tail(10, 10, 0.3) == pytest.approx(1)
    assert binomial_tail(3, 10, 0.0) == 1
    assert binomial_tail(3, 10, 1.0) == 0


def test_wilson() -> None:
    low, high = wilson(12, 12)
    assert low == pytest.approx(0.7575, abs=1e-3)
    assert high == 1
    assert wilson(0, 0) == (0, 1)


def test_mean_test() -> None:
    assert mean_test([]) == mean_test([3.0]) == mean_test([0.0, 0.0]) == 0.5
    assert mean_test([1.0, 1.0]) == 0
    assert mean_test([-1.0, -1.0]) == 1
    assert mean_test([1.0, -1.0, 1.0, -1.0]) == pytest.approx(0.5)


def test_corrections_count_once_per_group_and_near_ties_not_at_all() -> None:
    rows = (*corrections(0.5, 0.5, 0.01, -0.5), *(Correction("g0", "ana", 0.3, 0.8) for _ in range(10)))
    assert of_corrections(rows) == Result(4, 0.625, sign_test(2, 1))


def test_pairs() -> None:
    rows = [Pair(f"g{at}", "r", margin) for at, margin in enumerate([0.1, 0.2, -0.05, 0.3])]
    assert of_pairs(rows) == Result(4, 0.75, sign_test(3, 1))


def test_votes_are_ranked_like_an_area_under_the_curve() -> None:
    ups, downs = [0.5, 0.4, 0.3, -0.1], [-0.2, 0.0, 0.35, -0.3]
    rows = [Vote(f"u{at}", "", True, shift) for at, shift in enumerate(ups)]
    rows += [Vote(f"d{at}", "", False, shift) for at, shift in enumerate(downs)]
    won = sum(up > down for up in ups for down in downs)
    assert of_votes(rows, 0).rate == pytest.approx(won / 16)


def test_votes_of_one_person_are_compared_with_that_persons() -> None:
    """Ana is strict and her prompts rose, Ben is kind and his fell: within each the candidate ranks right."""
    rows = [Vote(f"a{at}", "ana", at < 3, 5.0 + (at < 3)) for at in range(12)]
    rows += [Vote(f"b{at}", "ben", at < 9, -5.0 + (at < 9)) for at in range(12)]
    assert of_votes(rows, 0).rate == 1.0


def test_both_votes_within_one_prompt_are_a_pair() -> None:
    rows = [
        Vote("g", "ana", True, 0.2),
        Vote("g", "ben", False, 0.1),
        Vote("h", "ana", True, 0.0),
        Vote("h", "ben", False, 0.1),
    ]
    assert of_votes(rows, 0) == Result(2, 0.5, sign_test(1, 1))


def test_the_permutation_test_finds_what_is_there() -> None:
    rows = [Vote(f"g{at}", "ana", at % 2 == 0, float(at % 2 == 0) + at / 1000) for at in range(40)]
    assert of_votes(rows, 0).p < 1e-4


def test_the_permutation_test_is_calibrated_where_nothing_is() -> None:
    found = []
    for seed in range(400):
        drawn = random.Random(seed)
        rows = [Vote(f"g{at}", f"r{at % 4}", drawn.random() < 0.4, drawn.gauss(0, 1)) for at in range(30)]
        found.append(of_votes(rows, seed).p)
    for level in (0.05, 0.2, 0.5):
        share = sum(p <= level for p in found) / len(found)
        assert share == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / len(found)))


def test_stouffer_weighs_families() -> None:
    assert stouffer([]) == 1
    assert stouffer([Result(10, 0.7, 0.03)]) == 0.03
    assert stouffer([Result(10, 0.7, 0.05), Result(10, 0.7, 0.05)]) == pytest.approx(0.01, abs=0.001)
    assert stouffer([Result(10, 0.9, 0.001), Result(10, 0.0, 1.0)]) > 0.5
    assert stouffer([Result(10, 0.9, 0.001), Result(10, 0.5, 1.0)]) == 0.001, "ties alone say nothing"


def test_the_interval_narrows_with_more_groups() -> None:
    few = interval(Evidence(corrections(*[0.5, 0.5, 0.5, -0.5] * 2)), 0, 400)
    many = interval(Evidence(corrections(*[0.5, 0.5, 0.5, -0.5] * 20)), 0, 400)
    assert few[0] < many[0] < 0.75 < many[1] < few[1]


def test_a_minority_of_liars_cannot_hide_a_loss() -> None:
    """Whoever the liars are, as long as they are one in five, the true effect is no lower than what is computed."""
    drawn = random.Random(1)
    for _ in range(200):
        told = [
            Correction(f"g{at}", f"r{at % 10}", 0.5, 0.5 + drawn.gauss(0.05 if at % 10 > 1 else 0.4, 0.1)) for at in range(40)
        ]
        said = Evidence(tuple(told))
        liars, least = least_favourable(said, 0.2)
        assert liars == 2
        assert effect(said.inverted(("r0", "r1"))) >= least - 1e-9


def test_few_people_have_no_fifth() -> None:
    assert least_favourable(Evidence(corrections(0.5, 0.5)), 0.2) == (0, 1.0)


@settings(max_examples=80, deadline=None)
@given(evidences, st.randoms(use_true_random=False))
def test_any_figures_any_order(evidence: Evidence, drawn: random.Random) -> None:
    assert evidence.sound
    settled = evidence.settled()
    found = primary(settled, 7)
    assert 0 <= found.p <= 1
    assert 0 <= found.rate <= 1
    low, high = interval(settled, 7, 10)
    assert low <= effect(settled) <= high
    liars, least = least_favourable(settled, 0.2)
    assert 0 <= least <= 1
    assert liars == len(settled.raters) // 5
    mixed = Evidence(shuffled(evidence.corrections, drawn), shuffled(evidence.pairs, drawn), shuffled(evidence.votes, drawn))
    assert mixed.settled() == settled
    assert primary(mixed.settled(), 7) == found
    assert interval(mixed.settled(), 7, 10) == (low, high)


@settings(max_examples=50, deadline=None)
@given(evidences)
def test_each_group_counts_in_one_family(evidence: Evidence) -> None:
    settled = evidence.settled()
    families = [{row.group for row in rows} for rows in (settled.corrections, settled.pairs, settled.votes)]
    assert sum(map(len, families)) == len(evidence.groups) == len(settled.groups)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e12])
def test_unsound_figures_are_seen(bad: float) -> None:
    assert not Evidence((Correction("g", "r", bad, 0.5),)).sound
    assert not Evidence(pairs=(Pair("g", "r", bad),)).sound
    assert not Evidence(votes=(Vote("g", "r", True, bad),)).sound
