"""Votes and corrections that look wrong, each with the reason in words. Statistics over who voted what on which answer.

Nothing is thrown away here: what is named is set aside until an admin approves it. What cannot be seen is said too: a rater
who shares no prompt with anybody else cannot be compared with them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

ROUNDS: Final = 3
"""The crowd is asked again without those already named, so often."""
EXACT: Final = 500
"""Votes of one rater up to which a probability is computed exactly; the time grows with the square of them."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as wrong. ``alpha``: share of honest raters among those named, at most."""

    burst_ratings: int = 30
    burst_s: float = 60
    fewest_votes: int = 10
    alpha: float = 0.01
    same_text_prompts: int = 5


class Vote(NamedTuple):
    """One rating. ``row``: its position; ``at``: seconds; ``answer``: hash of the answer, for votes on one text."""

    row: int
    rater: str
    at: float
    group: str
    answer: bytes
    up: bool


_Suspect = tuple[float, str, str, str]
"""How likely the votes are, slug and words of the reason, rater."""


class Correction(NamedTuple):
    """One correction. ``text``: hash of its normalised text; ``long``: enough of it to be no common word like "yes"."""

    row: int
    rater: str
    group: str
    text: bytes
    long: bool
    copies_prompt: bool


@dataclass(slots=True)
class Findings:
    """``reasons``: row to (slug, words); ``unseen``: raters with enough votes who share no prompt with others."""

    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)
    judged: int = 0
    unseen: int = 0

    def name(self, row: int, slug: str, words: str) -> None:
        """Sets a row aside; the first reason stays."""
        self.reasons.setdefault(row, (slug, words))


def judge(votes: Sequence[Vote], corrections: Sequence[Correction], rules: Rules) -> Findings:
    """Everything at once. The same input gives the same findings, in the same words."""
    found = Findings()
    _bursts(votes, rules, found)
    _crowd(votes, rules, found)
    _corrections(corrections, rules, found)
    return found


def _bursts(votes: Sequence[Vote], rules: Rules, found: Findings) -> None:
    for own in _by_rater(votes).values():
        own.sort(key=lambda vote: (vote.at, vote.row))
        start = 0
        bursts: list[list[int]] = []  # first and last vote, and the most within the time
        for end, vote in enumerate(own):
            while vote.at - own[start].at > rules.burst_s:
                start += 1
            count = end - start + 1
            if count > rules.burst_ratings:
                if not bursts or start > bursts[-1][1]:
                    bursts.append([start, end, count])
                bursts[-1][1:] = [end, max(count, bursts[-1][2])]
        for first, last, most in bursts:
            for vote in own[first : last + 1]:
                found.name(vote.row, "burst", f"{most} ratings within {rules.burst_s:g} s")


class _Cells:
    """How many votes went up and down, for each answer to a group's prompt and for each group."""

    def __init__(self, votes: Sequence[Vote]) -> None:
        self._counts: dict[object, Counter[bool]] = defaultdict(Counter)
        for vote in votes:
            self._counts[vote.group, vote.answer][vote.up] += 1
            self._counts[vote.group][vote.up] += 1

    def others(self, vote: Vote, own: Mapping[object, Counter[bool]]) -> tuple[int, int]:
        """Ups and downs that others gave: to the very answer where they did, else to answers to that prompt."""
        for key in ((vote.group, vote.answer), vote.group):
            ups = self._counts[key][True] - own[key][True]
            downs = self._counts[key][False] - own[key][False]
            if ups + downs:
                return ups, downs
        return 0, 0


def _crowd(votes: Sequence[Vote], rules: Rules, found: Findings) -> None:
    by_rater = {rater: own for rater, own in _by_rater(votes).items() if len(own) >= rules.fewest_votes}
    named: set[str] = set()
    for _ in range(ROUNDS):
        crowd = [vote for vote in votes if vote.rater not in named]
        cells = _Cells(crowd)
        before = len(named)
        shared: dict[str, list[tuple[Vote, int, int]]] = {}
        for rater, own in by_rater.items():
            counts: dict[object, Counter[bool]] = defaultdict(Counter)
            if rater not in named:
                for vote in own:
                    counts[vote.group, vote.answer][vote.up] += 1
                    counts[vote.group][vote.up] += 1
            shared[rater] = [(vote, *split) for vote in own if sum(split := cells.others(vote, counts))]
        seen = {rater: known for rater, known in shared.items() if len(known) >= rules.fewest_votes}
        found.judged, found.unseen = len(seen), len(by_rater) - len(seen)
        suspects = sorted(
            (*suspicion, rater)
            for rater, known in seen.items()
            if rater not in named
            for suspicion in (_one_sided(known), _inverted(known))
            if suspicion is not None
        )
        for rater, reason in _too_unlikely(suspects, rules.alpha, len(seen)):
            named.add(rater)
            for vote in by_rater[rater]:
                found.name(vote.row, *reason)
        if len(named) == before:
            return


def _too_unlikely(suspects: Sequence[_Suspect], alpha: float, judged: int) -> list[tuple[str, tuple[str, str]]]:
    """Those to name so that of the named at most ``alpha`` are expected to be honest (Benjamini and Hochberg 1995)."""
    last = max((rank for rank, each in enumerate(suspects, 1) if each[0] <= alpha * rank / judged), default=0)
    return [(rater, (slug, words)) for _, slug, words, rater in suspects[:last]]


def _one_sided(known: Sequence[tuple[Vote, int, int]]) -> tuple[float, str, str] | None:
    """All votes alike: how likely that is by the votes of others on the same prompts."""
    ups = sum(vote.up for vote, _, _ in known)
    if 0 < ups < len(known):
        return None
    agreeing = [(up if ups else down, up + down) for _, up, down in known]
    share = sum(agreed for agreed, _ in agreeing) / sum(total for _, total in agreeing)
    # What others say of one prompt is drawn towards what they say of all: a single vote is no certainty.
    chance = sum(math.log(max((agreed + share) / (total + 1), 1e-9)) for agreed, total in agreeing)
    side = "up" if ups else "down"
    words = f"all {len(known)} votes {side}, where others on the same prompts gave {side} in {share:.0%}"
    return math.exp(chance), "one_sided", words


def _inverted(known: Sequence[tuple[Vote, int, int]]) -> tuple[float, str, str] | None:
    """Against the majority of the others: how likely so little agreement is for a rater who does not look."""
    clear = [(vote, up > down) for vote, up, down in known if up != down]
    if not clear:
        return None
    own_ups = sum(vote.up for vote, _ in clear) / len(clear)
    by_chance = [own_ups if majority else 1 - own_ups for _, majority in clear]
    agreed = sum(vote.up == majority for vote, majority in clear)
    words = f"agrees with others in {agreed} of {len(clear)} votes; by chance it would be {sum(by_chance):.0f}"
    return _tail(by_chance, agreed), "inverted", words


def _tail(chances: Sequence[float], agreed: int) -> float:
    """P(at most ``agreed`` successes) of independent trials: exact up to `EXACT` of them, else Hoeffding's bound from above."""
    count, mean = len(chances), sum(chances) / len(chances)
    if not 0 < mean < 1 or agreed >= count * mean:
        return 1.0
    if count > EXACT:
        share = agreed / count
        divergence = (1 - share) * math.log((1 - share) / (1 - mean))
        return math.exp(-count * (divergence + (share * math.log(share / mean) if share else 0)))
    # probabilities[k]: k successes so far, for k up to `agreed`; more of them do not matter.
    probabilities = [1.0] + [0.0] * agreed
    for chance in chances:
        for k in range(agreed, 0, -1):
            probabilities[k] = probabilities[k] * (1 - chance) + probabilities[k - 1] * chance
        probabilities[0] *= 1 - chance
    return sum(probabilities)


def _corrections(corrections: Sequence[Correction], rules: Rules, found: Findings) -> None:
    prompts: dict[tuple[str, bytes], set[str]] = defaultdict(set)
    for each in corrections:
        if each.long:
            prompts[each.rater, each.text].add(each.group)
    for each in corrections:
        if each.copies_prompt:
            found.name(each.row, "copies_prompt", "the correction is the question again")
        count = len(prompts.get((each.rater, each.text), ()))
        if count >= rules.same_text_prompts:
            found.name(each.row, "same_text", f"the same text corrects {count} different prompts")


def _by_rater(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    found: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        found[vote.rater].append(vote)
    return found
