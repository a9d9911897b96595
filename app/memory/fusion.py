"""Two rankings into one: by meaning (vectors) and by words (BM25). Pure computing: no database, no embedder.

Reciprocal rank fusion [Cormack, Clarke, Büttcher 2009] adds ``weight / (60 + rank)`` over the rankings. With equal weights it
is better than either alone where question and text speak one language, and worse than vectors alone where they do not: few
words of the question then stand anywhere, and what they find is chance. So words count by how much of the question they find:
see `word_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_RANK: Final = 60
"""The constant of the method: how little the first places differ."""
_NONE_AT: Final = 0.25
_FULL_AT: Final = 0.6
_SAME: Final = 0.9


@dataclass(frozen=True, slots=True)
class Fused:
    """A chunk and its score: 0 to 1, 1 for the first place in every ranking that counts."""

    id: str
    score: float


def word_weight(coverage: float) -> float:
    """How much the ranking by words counts beside the one by vectors, 0 to 1.

    ``coverage``: which share of the question's telling words the best chunk has, each weighed by how rare it is; 0 to 1.
    Below a quarter, words say nothing; from 0.6 on they count as much as vectors.
    """
    return min(1.0, max(0.0, (coverage - _NONE_AT) / (_FULL_AT - _NONE_AT)))


def fuse(by_vectors: Sequence[str], by_words: Sequence[str], *, words: float) -> list[Fused]:
    """One ranking out of two, each the best first. ``words``: the weight of the second; with no first one it is 1.

    Equal scores go by the better place, then by id, so that the same rankings always give the same order.
    """
    weights = ((by_vectors, 1.0), (by_words, words if by_vectors else 1.0))
    most = sum(weight for ranking, weight in weights if ranking) / (_RANK + 1)
    scores: dict[str, float] = {}
    places: dict[str, int] = {}
    for ranking, weight in weights:
        if weight <= 0:
            continue
        for place, each in enumerate(dict.fromkeys(ranking), 1):
            scores[each] = scores.get(each, 0.0) + weight / (_RANK + place)
            places[each] = min(places.get(each, place), place)
    order = sorted(scores, key=lambda each: (-scores[each], places[each], each))
    return [Fused(each, min(1.0, round(scores[each] / most, 6))) for each in order]


def fold(ranking: Sequence[Fused], texts: Mapping[str, tuple[str, frozenset[str]]], *, k: int) -> list[Fused]:
    """The first ``k`` without those that say nearly the same as a better one of their document.

    ``texts``: by chunk, its document and its words. Chunks without an entry are gone, and left out.
    """
    kept: list[Fused] = []
    for each in ranking:
        if len(kept) >= k:
            break
        if each.id in texts and not any(_alike(texts[each.id], texts[other.id]) for other in kept):
            kept.append(each)
    return kept


def _alike(one: tuple[str, frozenset[str]], other: tuple[str, frozenset[str]]) -> bool:
    """Whether two chunks are of one document and share nearly all of their words."""
    if one[0] != other[0]:
        return False
    union = len(one[1] | other[1])
    return union == 0 or len(one[1] & other[1]) / union >= _SAME
