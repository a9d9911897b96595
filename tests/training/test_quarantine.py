"""Bursts, one-sided and inverted raters, pasted corrections: found with their reason, and honest voters left alone."""

from __future__ import annotations

import random

import pytest

from app.training.quarantine import Correction, Findings, Rules, Vote, judge

RULES = Rules()


def crowd(
    chance: random.Random, *, honest: int, hostile: int, votes: int, prompts: int, noise: float = 0.15, lazy: int = 0
) -> tuple[list[Vote], set[str]]:
    """Voters on answers that are good or bad; hostile ones vote the opposite, lazy ones always up. Two answers a prompt."""
    found: list[Vote] = []
    good = {(prompt, answer): chance.random() < 0.6 for prompt in range(prompts) for answer in range(2)}
    for number in range(honest + hostile + lazy):
        kind = "honest" if number < honest else "hostile" if number < honest + hostile else "lazy"
        for step in range(votes):
            spot = (chance.randrange(prompts), chance.randrange(2))
            up = good[spot] if chance.random() > noise else not good[spot]
            up = True if kind == "lazy" else up if kind == "honest" else not up
            found.append(Vote(len(found), f"{kind}{number}", step * 600.0, f"g{spot[0]}", bytes([spot[1]]), up))
    return found, {f"hostile{number}" for number in range(honest, honest + hostile)}


def raters(votes: list[Vote], findings: Findings) -> set[str]:
    return {votes[row].rater for row in findings.reasons}


def test_a_burst_is_named_with_its_size() -> None:
    votes = [Vote(number, "fast", number * 1.4, f"g{number}", b"a", number % 3 > 0) for number in range(42)]
    votes += [Vote(100 + number, "slow", number * 30.0, f"h{number}", b"a", number % 3 > 0) for number in range(60)]
    found = judge(votes, [], RULES)
    assert set(found.reasons) == set(range(42))
    assert found.reasons[0] == ("burst", "42 ratings within 60 s")


def test_ratings_at_a_human_pace_are_no_burst() -> None:
    votes = [Vote(number, "r", number * 2.1, f"g{number}", b"a", True) for number in range(300)]
    assert judge(votes, [], RULES).reasons == {}


def test_twenty_percent_hostile_voters_are_found() -> None:
    """Of 40 voters 8 vote the opposite of what they think, 40 votes each: most are found, honest ones hardly ever."""
    caught = wrong = hostile = honest = 0
    for seed in range(10):
        votes, bad = crowd(random.Random(seed), honest=32, hostile=8, votes=40, prompts=40)
        named = raters(votes, judge(votes, [], RULES))
        caught, hostile = caught + len(named & bad), hostile + len(bad)
        wrong, honest = wrong + len(named - bad), honest + 32
    assert caught >= 0.85 * hostile, (caught, hostile)
    assert wrong <= 0.02 * honest, (wrong, honest)


def test_honest_voters_are_left_alone() -> None:
    wrong = 0
    for seed in range(20):
        votes, _ = crowd(random.Random(100 + seed), honest=30, hostile=0, votes=30, prompts=40, noise=0.3)
        wrong += len(raters(votes, judge(votes, [], RULES)))
    assert wrong <= 12  # of 600: alpha is 1 % of each crowd


def test_one_sided_voters_are_found_where_others_disagree() -> None:
    votes, _ = crowd(random.Random(2), honest=20, hostile=0, lazy=3, votes=40, prompts=30)
    found = judge(votes, [], RULES)
    assert {rater for rater in raters(votes, found) if rater.startswith("lazy")} == {"lazy20", "lazy21", "lazy22"}
    reason = next(words for row, (slug, words) in found.reasons.items() if votes[row].rater == "lazy20")
    assert reason.startswith("all 40 votes up, where others on the same prompts gave up in")


def test_one_sided_voters_with_whom_all_agree_are_left_alone() -> None:
    votes = [Vote(n, f"r{n % 5}", n * 600.0, f"g{n // 5}", b"a", True) for n in range(200)]
    assert judge(votes, [], RULES).reasons == {}


def test_without_overlap_it_says_that_it_cannot_tell() -> None:
    votes = [Vote(n, f"r{n % 4}", n * 600.0, f"g{n}", b"a", False) for n in range(200)]
    found = judge(votes, [], RULES)
    assert (found.reasons, found.judged, found.unseen) == ({}, 0, 4)


@pytest.mark.parametrize("rater", ["u1", "token:"])
def test_the_same_text_for_many_prompts(rater: str) -> None:
    pasted = [Correction(n, rater, f"g{n}", b"x", True, copies_prompt=False) for n in range(6)]
    short = [Correction(10 + n, rater, f"g{n}", b"y", False, copies_prompt=False) for n in range(6)]
    others = [Correction(20 + n, f"u{n + 2}", f"g{n}", b"x", True, copies_prompt=False) for n in range(6)]
    found = judge([], [*pasted, *short, *others], RULES)
    assert set(found.reasons) == set(range(6))
    assert found.reasons[0] == ("same_text", "the same text corrects 6 different prompts")


def test_a_correction_that_repeats_the_question() -> None:
    found = judge([], [Correction(3, "u", "g", b"x", True, copies_prompt=True)], RULES)
    assert found.reasons == {3: ("copies_prompt", "the correction is the question again")}


def test_the_same_input_gives_the_same_words() -> None:
    votes, _ = crowd(random.Random(1), honest=12, hostile=4, votes=30, prompts=20)
    assert judge(votes, [], RULES) == judge(votes, [], RULES)
