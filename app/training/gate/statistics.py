"""The gate's tests and intervals, in pure Python: exact where that is cheap, seeded where it is not. They decide nothing.

All effects are on one scale: the chance that the candidate wins a comparison, ties halved. 0.5 is no difference. Everything
here takes any evidence that is `Evidence.sound` and raises nothing. p-values are one-sided (the candidate is better) and valid:
under no difference they are below x in at most a share x of all cases.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from app.training.gate.evidence import Correction, Evidence, Pair, Vote

Interval = tuple[float, float]

TIE: Final = 0.02
"""Two answers whose likeness to a correction differs by no more are alike."""
_LEAST_OF_A_KIND: Final = 3
"""Upvoted and downvoted prompts of one person from which on they are compared with each other only."""
_EXCEEDED: Final = 20
_PERMUTATIONS: Final = 20_000
_NORMAL: Final = NormalDist()
_SHARPEST: Final = 1e-12


def sign_test(wins: int, losses: int) -> float:
    """P(at least ``wins`` of wins + losses fair coins): exact. 1.0 without any coin."""
    coins = wins + losses
    return float(sum(math.comb(coins, heads) for heads in range(wins, coins + 1)) / 2**coins)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 without values."""
    return math.fsum(values) / len(values) if values else 0.0


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """P(at most ``hits`` of ``trials``) where each hits with ``chance``."""
    chance = min(1.0, max(0.0, chance))
    terms = (math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(hits + 1))
    return min(1.0, math.fsum(terms))


def wilson(hits: float, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z, share = _NORMAL.inv_cdf(0.5 + confidence / 2), hits / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean_test(differences: Sequence[float]) -> float:
    """P(a mean this high or higher) if the true mean is zero, by the normal approximation; 0.5 without spread or data."""
    if len(differences) < 2:
        return 0.5
    middle = mean(differences)
    spread = math.sqrt(math.fsum((each - middle) ** 2 for each in differences) / (len(differences) - 1))
    if spread <= _SHARPEST * max(1.0, abs(middle)):
        return 0.5 if abs(middle) <= _SHARPEST else float(middle < 0)
    return _NORMAL.cdf(-middle / (spread / math.sqrt(len(differences))))


@dataclass(frozen=True, slots=True)
class Result:
    """One family of evidence. ``units``: prompt groups that it rests on; ``rate``: chance that the candidate wins."""

    units: int
    rate: float
    p: float


NOTHING: Final = Result(0, 0.5, 1.0)


def of_corrections(rows: Sequence[Correction]) -> Result:
    """Which version answers more like the corrections: sign test over groups."""
    return _signs(_by_group((row.group, row.new - row.old) for row in rows), TIE)


def of_pairs(rows: Sequence[Pair]) -> Result:
    """Whether the candidate ranks chosen over rejected: sign test over groups."""
    return _signs(_by_group((row.group, row.margin) for row in rows), 0.0)


def _by_group(values: Iterable[tuple[str, float]]) -> list[float]:
    found: dict[str, list[float]] = defaultdict(list)
    for group, value in values:
        found[group].append(value)
    return [mean(each) for each in found.values()]


def _signs(differences: Sequence[float], tie: float) -> Result:
    wins = sum(each > tie for each in differences)
    losses = sum(each < -tie for each in differences)
    if not differences:
        return NOTHING
    rate = (wins + (len(differences) - wins - losses) / 2) / len(differences)
    return Result(len(differences), rate, sign_test(wins, losses))


@dataclass(frozen=True, slots=True)
class _Stratum:
    """Votes that are compared with each other: the candidate's log-ratios of one unit per prompt group, by vote."""

    ups: tuple[float, ...]
    downs: tuple[float, ...]

    @property
    def pairs(self) -> int:
        return len(self.ups) * len(self.downs)

    @property
    def weight(self) -> float:
        """Van Elteren's weight of a stratum's won pairs."""
        return 1 / (len(self.ups) + len(self.downs) + 1)

    def won(self) -> float:
        """Pairs of an upvoted and a downvoted answer that the candidate ranks right, ties halved."""
        downs = sorted(self.downs)
        return sum(bisect_left(downs, up) + bisect_right(downs, up) for up in self.ups) / 2


@dataclass(frozen=True, slots=True)
class _Votes:
    within: tuple[float, ...]
    """Groups that hold both votes: mean log-ratio of the upvoted answers less that of the downvoted ones."""
    strata: tuple[_Stratum, ...]

    @property
    def units(self) -> int:
        return len(self.within) + sum(2 * min(len(each.ups), len(each.downs)) for each in self.strata)

    @property
    def rate(self) -> float:
        """Both parts, by their units."""
        signs = _signs(self.within, 0.0)
        return _weighted([(signs.units, signs.rate), (self.units - signs.units, self.ranked)])

    @property
    def ranked(self) -> float:
        """The part across prompts."""
        pairs = math.fsum(each.weight * each.pairs for each in self.strata)
        return math.fsum(each.weight * each.won() for each in self.strata) / pairs if pairs else 0.5


def _split(rows: Sequence[Vote]) -> _Votes:
    """One unit per prompt group. People with votes of both kinds are compared with themselves, the others with each other."""
    groups: dict[str, list[Vote]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    within: list[float] = []
    people: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for votes in groups.values():
        ups, downs = ([vote.shift for vote in votes if vote.up is up] for up in (True, False))
        if ups and downs:
            within.append(mean(ups) - mean(downs))
        else:
            raters = {vote.rater for vote in votes}
            people[raters.pop() if len(raters) == 1 else ""][0 if ups else 1].append(mean(ups or downs))
    own = {name for name, (ups, downs) in people.items() if name and min(len(ups), len(downs)) >= _LEAST_OF_A_KIND}
    others = [votes for name, votes in people.items() if name not in own]
    strata = [_Stratum(tuple(people[name][0]), tuple(people[name][1])) for name in own]
    strata.append(_Stratum(tuple(up for ups, _ in others for up in ups), tuple(down for _, downs in others for down in downs)))
    return _Votes(tuple(sorted(within)), tuple(sorted((each for each in strata if each.pairs), key=_order)))


def _order(stratum: _Stratum) -> tuple[list[float], list[float]]:
    return sorted(stratum.ups), sorted(stratum.downs)


def of_votes(rows: Sequence[Vote], seed: int) -> Result:
    """Whether the candidate ranks upvoted over downvoted answers.

    Within a prompt by signs; across prompts by a permutation test of the rank sums, within each person where that goes.
    """
    votes = _split(rows)
    if not votes.units:
        return NOTHING
    signs = _signs(votes.within, 0.0)
    ranked = Result(votes.units - signs.units, votes.ranked, _permuted(votes.strata, seed) if votes.strata else 1.0)
    return Result(votes.units, votes.rate, stouffer([signs, ranked]))


def _permuted(strata: Sequence[_Stratum], seed: int) -> float:
    """Besag and Clifford's sequential permutation test: draws until 20 did as well, so clear nulls end after some dozens."""
    drawn = random.Random(seed)  # noqa: S311  # a test that can be repeated, no secret
    ranked = [_smaller_side(each) for each in strata]
    seen = sum(weight * sum(ranks[:count]) for weight, ranks, count in ranked) - 1e-9
    exceeded = 0
    for draw in range(1, _PERMUTATIONS + 1):
        exceeded += sum([weight * sum(drawn.sample(ranks, count)) for weight, ranks, count in ranked]) >= seen
        if exceeded == _EXCEEDED:
            return exceeded / draw
    return (exceeded + 1) / (_PERMUTATIONS + 1)


def _smaller_side(stratum: _Stratum) -> tuple[float, list[float], int]:
    """Weight, ranks and how many of them stand first: those of the rarer vote, for drawing few is quicker.

    A sum of ranks that is high for the upvoted is low for the downvoted, so for them the weight is negative.
    """
    ups, downs = sorted(stratum.ups), sorted(stratum.downs)
    if len(ups) <= len(downs):
        return stratum.weight, _midranks((*ups, *downs)), len(ups)
    return -stratum.weight, _midranks((*downs, *ups)), len(downs)


def _midranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing theirs."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def stouffer(families: Sequence[Result]) -> float:
    """One p-value of independent families, weighted by the root of their units; a family of ties alone says nothing.

    A p-value of 1 is a whole lump of chance, at least 2 ** -units: no lower score than that lump's is needed, or allowed.
    """
    told = [each for each in families if each.units and (each.p < 1 or each.rate < 0.5)]
    if len(told) < 2:
        return told[0].p if told else 1.0
    capped = ((each.units, min(1 - 0.5 ** min(each.units, 30), max(_SHARPEST, each.p))) for each in told)
    score = math.fsum(math.sqrt(units) * -_NORMAL.inv_cdf(p) for units, p in capped)
    return _NORMAL.cdf(-score / math.sqrt(sum(each.units for each in told)))


@dataclass(frozen=True, slots=True)
class Primary:
    """The one test of a judgement. ``families``: by kind of feedback; ``rate`` and ``p`` over all of them."""

    families: dict[str, Result]
    units: int
    rate: float
    p: float


def primary(evidence: Evidence, seed: int) -> Primary:
    """Tests settled evidence; see `Evidence.settled`."""
    families = {
        "corrections": of_corrections(evidence.corrections),
        "preferences": of_pairs(evidence.pairs),
        "ratings": of_votes(evidence.votes, seed),
    }
    told = {name: each for name, each in families.items() if each.units}
    units = sum(each.units for each in told.values())
    return Primary(told, units, effect(evidence), stouffer(list(told.values())))


def effect(evidence: Evidence) -> float:
    """The chance that the candidate wins, over all families by their units."""
    corrections, pairs, votes = of_corrections(evidence.corrections), of_pairs(evidence.pairs), _split(evidence.votes)
    return _weighted([(corrections.units, corrections.rate), (pairs.units, pairs.rate), (votes.units, votes.rate)])


def _weighted(parts: Sequence[tuple[int, float]]) -> float:
    units = sum(each for each, _ in parts)
    return math.fsum(each * rate for each, rate in parts) / units if units else 0.5


def interval(evidence: Evidence, seed: int, draws: int, confidence: float = 0.95) -> Interval:
    """Bootstrap interval of `effect` over people and prompts: with five people or more both are drawn, else prompts only.

    Never excludes the estimate itself.
    """
    drawn = random.Random(seed)  # noqa: S311
    cells: dict[str, dict[str, list[Correction | Pair | Vote]]] = defaultdict(lambda: defaultdict(list))
    whole = len(evidence.raters) < 5
    for row in evidence.rows():
        cells["" if whole else row.rater][row.group].append(row)
    people = [[groups[name] for name in sorted(groups)] for _, groups in sorted(cells.items())]
    found = sorted(effect(_resampled(people, drawn)) for _ in range(draws)) if people else []
    estimate = effect(evidence)
    if not found:
        return 0.0, 1.0
    low, high = (found[min(len(found) - 1, int(share * len(found)))] for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    return min(low, estimate), max(high, estimate)


def _resampled(people: list[list[list[Correction | Pair | Vote]]], drawn: random.Random) -> Evidence:
    corrections: list[Correction] = []
    pairs: list[Pair] = []
    votes: list[Vote] = []
    taken = drawn.choices(people, k=len(people)) if len(people) > 1 else people
    for number, groups in enumerate(taken):
        for copy, rows in enumerate(drawn.choices(groups, k=len(groups))):
            for row in rows:  # a group drawn twice is two groups
                match row:
                    case Correction():
                        corrections.append(Correction(f"{number}.{copy}", row.rater, row.old, row.new))
                    case Pair():
                        pairs.append(Pair(f"{number}.{copy}", row.rater, row.margin))
                    case Vote():
                        votes.append(Vote(f"{number}.{copy}", f"{number}.{row.rater}", row.up, row.shift))
    return Evidence(tuple(corrections), tuple(pairs), tuple(votes))


def least_favourable(evidence: Evidence, share: float, effect_of: Callable[[Evidence], float] = effect) -> tuple[int, float]:
    """The effect had the most favourable people lied: those ``share`` of them (rounded down) whose lie would matter most.

    Returns how many people that is, and the effect. Of people who lie no more than that, nobody can hide a loss behind it.
    """
    raters = evidence.raters
    liars = math.floor(len(raters) * share + 1e-9)
    if liars == 0:
        return 0, effect_of(evidence)
    by_harm = sorted(raters, key=lambda rater: (effect_of(evidence.inverted((rater,))), rater))
    return liars, effect_of(evidence.inverted(by_harm[:liars]))
