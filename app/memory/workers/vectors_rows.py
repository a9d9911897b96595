"""Arithmetic that the stores in child processes share: which vectors are sound, and exact scores. Runs in the child only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_NORM_TOLERANCE = 0.01
_DECIMALS = 6


def sound(rows: Sequence[tuple[str, str, bytes]], dimensions: int) -> tuple[list[tuple[str, str]], Any]:
    """Ids and content hashes, and the matrix, of the rows whose vectors are finite, of length 1 and of the right dimensions.

    Of rows of the same id the last counts.
    """
    unique = {id: (content, vector) for id, content, vector in rows if len(vector) == 4 * dimensions}
    matrix = np.frombuffer(b"".join(vector for _, vector in unique.values()), "<f4").reshape(-1, dimensions)
    with np.errstate(all="ignore"):
        good = np.abs(np.linalg.norm(matrix.astype(np.float64), axis=1) - 1) <= _NORM_TOLERANCE
    kept = [(id, content) for (id, (content, _)), fine in zip(unique.items(), good, strict=True) if fine]
    return kept, matrix[good]


def best(query: Any, ids: Sequence[str], vectors: Any, k: int) -> list[tuple[str, float]]:
    """The nearest ``k``, best first, equal scores by id.

    Row by row in the same order of additions: equal vectors get equal scores, wherever they lie.
    """
    scores = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    rounded = np.round(np.clip(scores, -1, 1), _DECIMALS) + 0.0
    return sorted(zip(ids, rounded.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))[:k]
