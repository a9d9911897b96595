"""The gate's calibration: simulated runs through the very code that judges real ones, and what it promises of them.

Simulated are figures (likeness to corrections, log-ratios, guarded properties), not texts. Each prompt and each person has an
effect of its own, so rows of one group and votes of one person hang together. `SCENARIOS` is all that is promised; each returns
how often something happened in how many trials. `python -m bench.gate` prints the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from app.core.records import GateAttemptRecord
from app.training.gate.attempts import Plan, plan
from app.training.gate.evidence import Correction, Evidence, Guard, Guards, LevelGuard, Pair, RateGuard, Vote
from app.training.gate.guards import FORGETTING
from app.training.gate.statistics import effect
from app.training.gate.verdict import Verdict, decide

Random = random.Random
_DRAWS: Final = 0
"""No bootstrap: it decides nothing."""
SERIES: Final = 20
GUARD_PROMPTS: Final = 48


@dataclass(frozen=True, slots=True)
class Tally:
    """``hits`` of ``trials``."""

    hits: int
    trials: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """A promise: of the trials, at most (or at least) the share ``bound`` is a hit."""

    says: str
    at_most: bool
    bound: float
    run: Callable[[Random], bool]
    weight: float = 1.0
    """Trials of this scenario, as a share of those asked for."""

    def tally(self, trials: int, seed: int) -> Tally:
        """Runs it; the same seed gives the same count."""
        trials = max(1, round(trials * self.weight))
        return Tally(sum(self.run(Random(f"{self.says} {seed} {trial}")) for trial in range(trials)), trials)

    def kept(self, tally: Tally) -> bool:
        """Whether the promise holds in these trials."""
        share = tally.hits / tally.trials
        return share <= self.bound if self.at_most else share >= self.bound


# --- people and prompts


@dataclass(frozen=True, slots=True)
class World:
    """Held-out feedback before any version is judged on it. ``truth``: what each vote should have been."""

    votes: tuple[tuple[str, str, bool], ...]
    truth: tuple[bool, ...]
    hostile: frozenset[str]


def world(
    drawn: Random, *, prompts: int, people: int = 8, ups: float = 0.38, flipped: float = 0.0, hostile: float = 0.0
) -> World:
    """Ratings of ``prompts`` prompts, one in five rated twice. People differ in how strict they are, prompts in how hard."""
    liars = frozenset(f"person {each}" for each in range(round(people * hostile)))
    leaning = [drawn.gauss(0, 0.1) for _ in range(people)]
    votes, truth = [], []
    for prompt in range(prompts):
        ease = drawn.gauss(0, 0.15)
        for _ in range(2 if drawn.random() < 0.2 else 1):
            person = drawn.randrange(people)
            right = drawn.random() < min(0.95, max(0.05, ups + ease + leaning[person]))
            name = f"person {person}"
            said = right != (drawn.random() < flipped) if name not in liars else not right
            votes.append((f"prompt {prompt}", name, said))
            truth.append(right)
    return World(tuple(votes), tuple(truth), liars)


def rated(drawn: Random, seen: World, pull: Callable[[str, bool], float]) -> tuple[Evidence, Evidence]:
    """A candidate's evidence on these votes, and the same had everybody voted the truth.

    ``pull(person, right)``: how far training moved such an answer, in standard deviations of what else moved it.
    """
    drift = drawn.gauss(-0.5, 0.5)
    people = {name: drawn.gauss(0, 0.3) for name in sorted({name for _, name, _ in seen.votes})}
    prompts = {group: drawn.gauss(0, 0.5) for group in sorted({group for group, _, _ in seen.votes})}
    noisy, clean = [], []
    for (group, name, said), right in zip(seen.votes, seen.truth, strict=True):
        shift = 0.1 * (drift + people[name] + prompts[group] + drawn.gauss(0, 0.85) + pull(name, right))
        noisy.append(Vote(group, name, said, shift))
        clean.append(Vote(group, name, right, shift))
    return Evidence(votes=tuple(noisy)), Evidence(votes=tuple(clean))


def corrected(drawn: Random, groups: int, gain: float, spread: float = 0.12, people: int = 1) -> Evidence:
    """Corrections of ``groups`` prompts, one to three rows each; likeness to them rises by ``gain`` on average."""
    rows = []
    for group in range(groups):
        hard, moved = drawn.gauss(0.35, 0.12), drawn.gauss(gain, spread)
        for _ in range(drawn.choice((1, 1, 2, 3))):
            old = hard + drawn.gauss(0, 0.03)
            new = old + moved + drawn.gauss(0, 0.03)
            rows.append(
                Correction(f"prompt {group}", f"person {drawn.randrange(people)}", min(1, max(0, old)), min(1, max(0, new)))
            )
    return Evidence(corrections=tuple(rows))


def preferred(drawn: Random, groups: int, gain: float, people: int = 8) -> Evidence:
    """Preferences on ``groups`` prompts; the margin rises by ``gain`` standard deviations."""
    drift = {person: drawn.gauss(0, 0.3) for person in range(people)}
    rows = []
    for group in range(groups):
        common = drawn.gauss(0, 0.6)
        for _ in range(drawn.choice((1, 1, 2))):
            person = drawn.randrange(people)
            # What a person leans to raises chosen and rejected alike half of the time.
            lean = drift[person] * drawn.choice((-1, 1))
            margin = 0.1 * (gain + common + lean + drawn.gauss(0, 0.8))
            rows.append(Pair(f"choice {group}", f"person {person}", margin))
    return Evidence(pairs=tuple(rows))


# --- guards


def harmless(drawn: Random) -> Guards:
    """What an adapter that breaks nothing does to the guards: answers change, their properties on average do not."""
    found: list[Guard] = []
    for name, share, changed, sides in _PROPERTIES:
        count = _FEW.get(name, GUARD_PROMPTS)
        old = tuple(drawn.random() < share for _ in range(count))
        new = tuple(drawn.random() < share if drawn.random() < changed else each for each in old)
        found.append(RateGuard(name, old, new, sides=sides))  # type: ignore[arg-type]
    lengths = tuple(drawn.gauss(3.5, 0.6) for _ in range(GUARD_PROMPTS))
    moved = drawn.gauss(0, 0.08)
    found.append(LevelGuard("length", lengths, tuple(each + moved + drawn.gauss(0, 0.35) for each in lengths), (), "both", 0.4))
    memory = tuple(drawn.gauss(-2.5, 0.5) for _ in range(16))
    found.append(
        LevelGuard("forgetting", memory, tuple(each + drawn.gauss(-0.1, 0.1) for each in memory), (), "down", FORGETTING)
    )
    return Guards(tuple(found))


_PROPERTIES: Final = (
    # name, share of answers that have it, share of answers that come out anew, which way it must not go
    ("facts", 0.5, 0.3, "down"),
    ("language", 0.9, 0.2, "down"),
    ("refusals", 0.05, 0.2, "up"),
    ("json", 0.4, 0.3, "down"),
    ("degenerate", 0.15, 0.4, "up"),
    ("impersonal", 0.85, 0.4, "both"),
    ("exclamation", 0.15, 0.4, "both"),
    ("emoji", 0.02, 0.2, "both"),
    ("politeness", 0.2, 0.4, "both"),
    ("formatting", 0.3, 0.4, "both"),
)
_FEW: Final[Mapping[str, int]] = MappingProxyType({"facts": 16, "json": 8})


def sunk(drawn: Random, name: str, points: float, sides: str = "both") -> RateGuard:
    """A property that sinks by ``points`` (0.3: 30 points), as tone did in the measurement."""
    share = 0.87
    old = [drawn.random() < share for _ in range(GUARD_PROMPTS)]
    lost = points / share
    new = [(each and drawn.random() >= lost) or (not each and drawn.random() < 0.05) for each in old]
    # What upvoted answers had of it: as much as the others, for nobody voted on it.
    wanted = tuple(drawn.random() < share for _ in range(76))
    return RateGuard(name, tuple(old), tuple(new), wanted, sides)  # type: ignore[arg-type]


# --- judging


def judged(evidence: Evidence, guards: Guards | None = None) -> Verdict:
    """A first attempt."""
    return decide(evidence, guards or Guards(), _plan(evidence, (), 0), draws=_DRAWS)


def _plan(evidence: Evidence, attempts: tuple[GateAttemptRecord, ...], number: int) -> Plan:
    return plan(evidence.groups, attempts, f"run {number}")


def passes_once(drawn: Random, candidate: Callable[[int], Evidence]) -> bool:
    """Whether one of `SERIES` attempts passes. ``candidate(n)``: the evidence of attempt n, mostly on the same feedback."""
    attempts: tuple[GateAttemptRecord, ...] = ()
    for number in range(SERIES):
        evidence = candidate(number)
        step = _plan(evidence, attempts, number)
        verdict = decide(evidence, Guards(), step, draws=_DRAWS)
        if verdict.passed:
            return True
        groups = tuple(sorted(step.groups))
        attempts += (
            GateAttemptRecord(
                f"{number}", datetime(2026, 1, 1, tzinfo=UTC), f"run {number}", groups, step.alpha, verdict.p_value, False
            ),
        )
    return False


# --- the promises


def _no_gain_ratings(drawn: Random) -> bool:
    seen = world(drawn, prompts=drawn.choice((40, 80, 200)), people=drawn.choice((1, 3, 8)))
    return judged(rated(drawn, seen, lambda *_: 0.0)[0]).passed


def _no_gain_corrections(drawn: Random) -> bool:
    return judged(corrected(drawn, drawn.choice((12, 20, 60)), 0.0)).passed


def _no_gain_mixed(drawn: Random) -> bool:
    return judged(_mixed(drawn, 0.0, 0.0)).passed


def _mixed(drawn: Random, gain: float, pull: float) -> Evidence:
    ratings = rated(drawn, world(drawn, prompts=40), lambda _, right: pull * right)[0]
    corrections, pairs = corrected(drawn, 12, gain, people=8), preferred(drawn, 15, pull)
    return Evidence(corrections.corrections, pairs.pairs, tuple(_moved(vote) for vote in ratings.votes))


def _moved(vote: Vote) -> Vote:
    return Vote(f"rated {vote.group}", vote.rater, vote.up, vote.shift)


def _series_ratings(drawn: Random) -> bool:
    seen = world(drawn, prompts=drawn.choice((40, 100)))
    return passes_once(drawn, lambda _: rated(drawn, seen, lambda *_: 0.0)[0])


def _series_corrections(drawn: Random) -> bool:
    groups = drawn.choice((12, 40))
    return passes_once(drawn, lambda number: corrected(drawn, groups + number // 2, 0.0))


def _gain_corrections(drawn: Random) -> bool:
    return judged(corrected(drawn, drawn.randint(12, 20), 0.35, 0.18), harmless(drawn)).passed


def _gain_ratings(drawn: Random) -> bool:
    seen = world(drawn, prompts=40, ups=0.38, flipped=0.03)
    return judged(rated(drawn, seen, lambda _, right: GAIN * right)[0], harmless(drawn)).passed


GAIN: Final = 1.8
"""How far a gain of the demo's size raises what is right over what is wrong, in standard deviations of the noise in one row.

With all that shifts whole prompts and people, it then ranks 86 % of the pairs of an upvoted and a downvoted answer right.
"""


def _worse(noisy: Evidence, clean: Evidence) -> bool:
    """Whether a version is promoted that is worse on the clean held-out set."""
    return effect(clean.settled()) < 0.5 and judged(noisy).passed


def _flipped(drawn: Random) -> bool:
    """An adapter that learned from few or many votes, 30 % of them flipped: at times it learned the wrong thing."""
    seen = world(drawn, prompts=drawn.choice((40, 100, 200)), flipped=0.3)
    return _worse(*rated(drawn, seen, _learned(drawn, 0.3)))


def _learned(drawn: Random, wrong: float) -> Callable[[str, bool], float]:
    votes = drawn.choice((5, 10, 20, 160))
    lesson = sum(-1 if drawn.random() < wrong else 1 for _ in range(votes)) / votes
    strength = GAIN * drawn.choice((0.5, 1.0))
    return lambda _, right: strength * lesson * right


def _backwards(drawn: Random) -> bool:
    """An adapter that is worse by construction, judged by votes of which 30 % are flipped."""
    seen = world(drawn, prompts=drawn.choice((40, 100, 200)), flipped=0.3)
    harm = drawn.uniform(0.2, 1.0) * GAIN
    return _worse(*rated(drawn, seen, lambda _, right: -harm * right))


def _hostile(drawn: Random) -> bool:
    """Every fifth person votes the opposite, in training and held out; the adapter follows all, or the hostile ones only."""
    seen = world(drawn, prompts=drawn.choice((40, 100, 200)), people=10, hostile=0.2)
    follow = drawn.uniform(-1.0, 1.0) * GAIN
    targeted = drawn.uniform(0.0, 3.0) * GAIN
    return _worse(*rated(drawn, seen, lambda name, right: (-targeted if name in seen.hostile else follow) * right))


def _hostile_corrections(drawn: Random) -> bool:
    """Every fifth person corrects towards nonsense, and the adapter answers these people's prompts so."""
    groups = drawn.choice((20, 40, 100))
    rows, clean = [], []
    gain = drawn.gauss(0, 0.05)
    for group in range(groups):
        person = group % 10
        moved = drawn.gauss(0.4 if person < 2 else gain, 0.1)
        row = Correction(f"prompt {group}", f"person {person}", 0.3, min(1, max(0, 0.3 + moved)))
        rows.append(row)
        clean.append(Correction(row.group, row.rater, row.new, row.old) if person < 2 else row)
    return _worse(Evidence(tuple(rows)), Evidence(tuple(clean)))


def _collapse(drawn: Random) -> bool:
    seen = world(drawn, prompts=120)
    guards = Guards((*harmless(drawn).each, sunk(drawn, "side", 0.52)))
    return judged(rated(drawn, seen, lambda _, right: GAIN * right)[0], guards).passed


def _drop(drawn: Random) -> bool:
    guards = Guards((sunk(drawn, "side", 0.3),))
    return judged(corrected(drawn, 20, 0.4), guards).passed


def _guards_alone(drawn: Random) -> bool:
    return judged(corrected(drawn, 20, 0.6, 0.05), harmless(drawn)).passed


SCENARIOS: Final = (
    Scenario("no gain, ratings: passes", True, 0.05, _no_gain_ratings),
    Scenario("no gain, corrections: passes", True, 0.05, _no_gain_corrections),
    Scenario("no gain, all kinds mixed: passes", True, 0.05, _no_gain_mixed),
    Scenario("no gain, 20 attempts on the same ratings: one passes", True, 0.05, _series_ratings, 0.5),
    Scenario(
        "no gain, 20 attempts on the same corrections, a fresh one now and then: one passes",
        True,
        0.05,
        _series_corrections,
        0.5,
    ),
    Scenario("30 % of the votes flipped, adapter follows them: worse on the clean set and passes", True, 0.0, _flipped),
    Scenario("30 % of the votes flipped, adapter worse by construction: passes", True, 0.0, _backwards),
    Scenario("20 % hostile voters, adapter follows them: worse on the clean set and passes", True, 0.0, _hostile),
    Scenario("20 % hostile correctors: worse on the clean set and passes", True, 0.0, _hostile_corrections),
    Scenario("gain of the demo's size, 12 to 20 held-out corrections: passes", False, 0.9, _gain_corrections),
    Scenario("gain of the demo's size, 40 held-out ratings: passes", False, 0.9, _gain_ratings),
    Scenario("a real gain that sinks another property by 52 points: passes", True, 0.01, _collapse),
    Scenario("a property sinks by 30 points: passes", True, 0.05, _drop),
    Scenario("harmless adapter: all guards pass", False, 0.95, _guards_alone),
)
