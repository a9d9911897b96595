"""What the gate looks at: figures only, one row for each held-out feedback and each guard. No text, no model, no decision.

``group`` is the prompt's group (paraphrases share it), ``rater`` who judged. A group counts once, however many rows it has:
rows of one prompt rise and fall together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

Sides = Literal["down", "up", "both"]
"""Which way a guarded property must not move: down (it must not sink), up (it must not rise), or neither."""


@dataclass(frozen=True, slots=True, order=True)
class Correction:
    """A held-out correction: how like it the two versions answer, each in [0, 1]."""

    group: str
    rater: str
    old: float
    new: float


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A held-out preference: by how much more the candidate raised the chosen answer than the rejected one.

    ``margin``: difference of the two log-ratios (candidate over current), each in nats per token.
    """

    group: str
    rater: str
    margin: float


@dataclass(frozen=True, slots=True, order=True)
class Vote:
    """A held-out rating. ``shift``: log-ratio (candidate over current) of the rated answer, in nats per token."""

    group: str
    rater: str
    up: bool
    shift: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All held-out feedback of one judgement. Its order means nothing."""

    corrections: tuple[Correction, ...] = ()
    pairs: tuple[Pair, ...] = ()
    votes: tuple[Vote, ...] = ()

    def rows(self) -> Iterator[Correction | Pair | Vote]:
        """All rows."""
        return chain(self.corrections, self.pairs, self.votes)

    @property
    def groups(self) -> frozenset[str]:
        """The groups that have a row."""
        return frozenset(row.group for row in self.rows())

    @property
    def raters(self) -> tuple[str, ...]:
        """Everybody who judged, sorted."""
        return tuple(sorted({row.rater for row in self.rows()}))

    @property
    def sound(self) -> bool:
        """Whether every figure is a number that can be true."""
        return all(map(_sound, chain.from_iterable(map(_figures, self.rows()))))

    def settled(self) -> Evidence:
        """Sorted, and each group with one kind of feedback only: the corrections, else the preferences, else the votes.

        So the three families rest on different prompts and may be combined as independent.
        """
        corrected = {row.group for row in self.corrections}
        preferred = {row.group for row in self.pairs} | corrected
        return Evidence(
            tuple(sorted(self.corrections)),
            tuple(sorted(row for row in self.pairs if row.group not in corrected)),
            tuple(sorted(row for row in self.votes if row.group not in preferred)),
        )

    def only(self, groups: Iterable[str]) -> Evidence:
        """The rows of these groups."""
        wanted = frozenset(groups)
        return Evidence(
            tuple(row for row in self.corrections if row.group in wanted),
            tuple(row for row in self.pairs if row.group in wanted),
            tuple(row for row in self.votes if row.group in wanted),
        )

    def inverted(self, raters: Iterable[str]) -> Evidence:
        """The same had these people said the opposite of what they said."""
        liars = frozenset(raters)
        return Evidence(
            tuple(replace(row, old=row.new, new=row.old) if row.rater in liars else row for row in self.corrections),
            tuple(replace(row, margin=-row.margin) if row.rater in liars else row for row in self.pairs),
            tuple(replace(row, up=not row.up) if row.rater in liars else row for row in self.votes),
        )


def _sound(figure: float) -> bool:
    # No likeness, length or log-probability comes near it; sums of what passes cannot overflow.
    return math.isfinite(figure) and abs(figure) < 1e9


def _figures(row: Correction | Pair | Vote) -> tuple[float, ...]:
    match row:
        case Correction():
            return (row.old, row.new)
        case Pair():
            return (row.margin,)
        case Vote():
            return (row.shift,)


@dataclass(frozen=True, slots=True)
class RateGuard:
    """A property that an answer has or has not, over the guard prompts; ``old`` and ``new`` go prompt by prompt.

    ``wanted``: whether the texts that people asked for (corrections, chosen and upvoted answers of the training rows) have it.
    """

    name: str
    old: tuple[bool, ...]
    new: tuple[bool, ...]
    wanted: tuple[bool, ...] = ()
    sides: Sides = "down"
    margin: float = 0.1


@dataclass(frozen=True, slots=True)
class LevelGuard:
    """A number for each guard prompt (log of a length, nats per token); fields as in `RateGuard`."""

    name: str
    old: tuple[float, ...]
    new: tuple[float, ...]
    wanted: tuple[float, ...] = ()
    sides: Sides = "down"
    margin: float = 0.1
    unit: str = ""

    @property
    def sound(self) -> bool:
        """Whether every figure is a number that can be true."""
        return all(map(_sound, chain(self.old, self.new, self.wanted)))


@dataclass(frozen=True, slots=True)
class LimitGuard:
    """One measured number that must stay at or under ``limit`` (or over it: ``at_least``)."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A guard that could not be measured. ``passes``: because the thing guarded does not exist here; else it fails."""

    name: str
    reason: str
    passes: bool


Guard = RateGuard | LevelGuard | LimitGuard | Unmeasured


@dataclass(frozen=True, slots=True)
class Guards:
    """All guards of one judgement, in the order in which they are shown."""

    each: tuple[Guard, ...] = field(default=())
