"""Whether a version is liked less than another, judged after every vote: anytime-valid, so that looking often costs nothing.

Votes are paired as they come, and each pair gives a difference d of the two verdicts (1 good, 0 bad): the new version's minus
the mean of the other's since the pair before. A `Bets` starts with 1 and bets fixed parts of it on "d is below 0 on average".
If that is not so, its expected wealth never grows, whatever the rates are and however they drift: the wealth is an e-process,
and by Ville's inequality it ever reaches 20 with probability 1/20 at most (Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", 2024). The same bets on "d is above -margin" prove that there is no harm beyond it.

Pure: no clock, no storage. Nothing here decides what follows; `app.training.promotion` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

Side = Literal["control", "new"]
THRESHOLD: Final = 20.0
"""Wealth at which something is taken as shown: wrong in 5 % of all trials at most."""
MARGIN: Final = 0.1
"""A new version may be liked by so much less (as a share of votes) and still be "not worse"."""
MOST_PER_PERSON: Final = 5
"""Verdicts of one person on one side that count."""
MOST_VERDICTS: Final = 4000
"""Later ones are left out: by then every difference that matters has shown."""
_STAKES: Final = (0.08, 0.16, 0.3, 0.45, 0.6, 0.8)
"""Parts of the wealth that are bet: small ones win by small differences, large ones by large."""
_LEFT_OUT: Final = 50


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one person thought in one session. ``good``: an upvote, a preference won; else a downvote, a correction, a
    preference lost."""

    side: Side
    person: str
    good: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the verdicts say. ``harm``, ``no_harm``: wealth of the bets; 20 is shown. ``alone``: shown only by one person's
    verdicts, which is not enough."""

    control_good: int
    control_bad: int
    new_good: int
    new_bad: int
    harm: float
    no_harm: float
    alone: bool = False

    @property
    def harmful(self) -> bool:
        """Whether it is shown that the new version is liked less."""
        return self.harm >= THRESHOLD and not self.alone

    @property
    def harmless(self) -> bool:
        """Whether it is shown that it is not liked less by `MARGIN` or more."""
        return self.no_harm >= THRESHOLD and not self.alone and not self.harmful


class Bets:
    """The wealth of an even mixture of bets on a mean above 0."""

    def __init__(self) -> None:
        self._logs = [0.0] * len(_STAKES)

    def add(self, value: float) -> None:
        """The next value, from -1 to 1.1."""
        for index, stake in enumerate(_STAKES):
            self._logs[index] += math.log1p(stake * value)

    @property
    def wealth(self) -> float:
        """What 1 has become; at most 1e300."""
        top = max(self._logs)
        mean = sum(math.exp(each - top) for each in self._logs) / len(self._logs)
        return math.exp(min(top + math.log(mean), 690.0))


def judge(verdicts: Sequence[Verdict], *, paired: bool) -> Evidence:
    """What ``verdicts``, in their order, say of the new version.

    Args:
        verdicts: of both sides; more than `MOST_PER_PERSON` of one person on one side are left out.
        paired: the control's were all given before the new version began: one of them is set against each new one. Else both
            come side by side, and all of the control's since the pair before are set against a new one.
    """
    counted = _capped(verdicts)
    found = _evidence(counted, paired=paired)
    if max(found.harm, found.no_harm) < THRESHOLD:
        return found
    # One person must not decide: it has to stand without anybody.
    most = Counter(each.person for each in counted).most_common(_LEFT_OUT)
    for person, _ in most:
        rest = _evidence([each for each in counted if each.person != person], paired=paired)
        if max(rest.harm, rest.no_harm) < THRESHOLD:
            return replace(found, alone=True)
    return found


def _capped(verdicts: Iterable[Verdict]) -> list[Verdict]:
    given: Counter[tuple[Side, str]] = Counter()
    counted = []
    for each in verdicts:
        if given[each.side, each.person] < MOST_PER_PERSON:
            given[each.side, each.person] += 1
            counted.append(each)
    return counted[:MOST_VERDICTS]


def _evidence(verdicts: Sequence[Verdict], *, paired: bool) -> Evidence:
    harm, no_harm = Bets(), Bets()
    for difference in _differences(verdicts, paired=paired):
        harm.add(-difference)
        no_harm.add(difference + MARGIN)
    counts = Counter((each.side, each.good) for each in verdicts)
    return Evidence(
        control_good=counts["control", True],
        control_bad=counts["control", False],
        new_good=counts["new", True],
        new_bad=counts["new", False],
        harm=harm.wealth,
        no_harm=no_harm.wealth,
    )


def _differences(verdicts: Iterable[Verdict], *, paired: bool) -> Iterable[float]:
    waiting: dict[Side, list[bool]] = {"control": [], "new": []}
    for each in verdicts:
        waiting[each.side].append(each.good)
        if not waiting["control"] or not waiting["new"]:
            continue
        sides = []
        for side in ("new", "control"):
            used = waiting[side][:1] if paired else waiting[side][:]
            del waiting[side][: len(used)]
            sides.append(sum(used) / len(used))
        yield sides[0] - sides[1]
