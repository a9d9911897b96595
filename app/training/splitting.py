"""Which groups are held out, and how much a person's rows weigh. Pure functions over counts and names; no rows, no files.

A keyed hash of the group decides, so the split of a prompt does not change as others come and go. What was once held out
stays held out, whatever the hash says: history comes first. With few groups a hash alone may hold out none of them, so the
groups of lowest hash are added until every kind has its share; groups that never trained come first.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

FEWEST_GROUPS = 5
"""Below so many groups of a kind nothing is topped up: a fifth of them would be none or all there is to learn."""


@dataclass(frozen=True, slots=True)
class History:
    """Groups of earlier snapshots by the side on which they stood."""

    heldout: Collection[str] = frozenset()
    trained: Collection[str] = frozenset()


def rank(group: str, seed: int) -> float:
    """Where a group stands between 0 and 1: the same for ever for the same seed."""
    digest = hashlib.blake2b(group.encode(), digest_size=8, key=f"aprendiz split {seed}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def held_out(kinds: Mapping[str, Collection[str]], *, share: float, seed: int, history: History) -> set[str]:
    """The groups to hold out. ``kinds``: kind of row to the groups that have such rows; ``share``: 0 to 1, of the groups.

    Of each kind with at least `FEWEST_GROUPS` groups at least ``ceil(share * groups)`` are held out.
    """
    everything = set().union(*kinds.values())
    ranks = {group: rank(group, seed) for group in everything}
    trained = everything & set(history.trained)
    found = everything & set(history.heldout)
    found |= {group for group in everything - trained if ranks[group] < share}
    for kind in sorted(kinds):
        of_kind = set(kinds[kind])
        missing = math.ceil(share * len(of_kind) - 1e-9) - len(of_kind & found)
        if len(of_kind) >= FEWEST_GROUPS and missing > 0:
            found.update(heapq.nsmallest(missing, of_kind - found, key=lambda group: (group in trained, ranks[group])))
    return found


def scales(rows: Mapping[str, int], *, most: float, floor: int) -> dict[str, float]:
    """By how much each person's rows are scaled, so that nobody has more than ``most`` of the weight of a kind.

    ``rows``: person to number of rows. Fewer than ``1 / most`` people share equally at best, so one person alone is not
    capped. The cap gives way where it would leave less than ``floor`` rows' worth: what a run needs comes first.
    """
    if not rows:
        return {}
    highest = _highest(sorted(rows.values(), reverse=True), max(most, 1 / len(rows)), floor)
    return {person: min(1.0, highest / count) for person, count in rows.items()}


def _highest(counts: list[int], most: float, floor: int) -> float:
    """The most that one person may weigh. ``counts``: of all people, highest first; ``most`` at least ``1 / len(counts)``."""
    rest = sum(counts)
    if rest <= floor or counts[0] <= most * rest:
        return float(counts[0])
    # With the first `capped` people at the limit: limit = most * (capped * limit + rest), solved for the limit.
    for capped in range(1, len(counts)):
        rest -= counts[capped - 1]
        limit = max(most * rest / max(1 - capped * most, 1e-9), (floor - rest) / capped)
        if limit >= counts[capped]:
            return limit
    return float(counts[-1])
