"""A large partition in memory: its approximate index finds what exact search finds, also after changes beside its building."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from app.memory.workers.vectors_partition import FLAT_ROWS, Partition

_DIMENSIONS = 24
_COUNT = FLAT_ROWS + 2000


def matrix(count: int, seed: int) -> Any:
    """Vectors in topics."""
    topics = np.random.default_rng(3).standard_normal((300, _DIMENSIONS))
    rng = np.random.default_rng(seed)
    found = topics[rng.integers(0, 300, count)] + 0.4 * rng.standard_normal((count, _DIMENSIONS))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("<f4")


def rows(vectors: Any, start: int = 0) -> list[tuple[str, str, bytes]]:
    """With ids by number."""
    return [(f"{number:06}", "1", vector.tobytes()) for number, vector in enumerate(vectors, start)]


@pytest.fixture
def large() -> Partition:
    """More rows than exact search is for."""
    made = Partition(_DIMENSIONS)
    made.add(rows(matrix(_COUNT, 1)))
    return made


def recall(partition: Partition, vectors: Any) -> float:
    """Of ten, over a hundred queries; ``vectors``: what is in the partition, by number."""
    right = 0
    for query in matrix(100, 9):
        best = {f"{number:06}" for number in np.argsort(-(vectors @ query))[:10]}
        right += len(best & {id for id, _ in partition.search(query.tobytes(), 10)})
    return right / 1000


def test_the_approximate_index_finds_what_exact_search_finds(large: Partition) -> None:
    assert large.wants_index()
    assert recall(large, matrix(_COUNT, 1)) == 1.0
    large.build()
    assert large.approximate and not large.wants_index()
    assert recall(large, matrix(_COUNT, 1)) >= 0.95


def test_changes_reach_the_approximate_index(large: Partition) -> None:
    large.build()
    vectors = matrix(_COUNT, 1)
    gone, kept = large.keep([(f"{number:06}", "1") for number in range(500, _COUNT)])
    assert (gone, kept) == (500, [])
    for number in range(0, 500, 50):
        assert f"{number:06}" not in {id for id, _ in large.search(vectors[number].tobytes(), 20)}
    fresh = matrix(300, 2)
    large.add(rows(fresh, _COUNT))
    for number in range(0, 300, 30):
        assert large.search(fresh[number].tobytes(), 1)[0][0] == f"{_COUNT + number:06}"
    whole = np.concatenate([vectors, fresh])
    whole[:500] = 0
    assert recall(large, whole) >= 0.95


def test_what_changes_while_it_is_built_is_in_it(large: Partition) -> None:
    vectors, fresh = matrix(_COUNT, 1), matrix(400, 2)
    builder = threading.Thread(target=large.build)
    builder.start()
    for step in range(8):
        large.add(rows(fresh[step * 50 : step * 50 + 50], _COUNT + step * 50))
        large.keep([(id, content) for id, content in large.rows if int(id) >= (step + 1) * 40])
    builder.join(60)
    assert large.approximate
    whole = np.concatenate([vectors, fresh])
    whole[:320] = 0
    assert len(large) == _COUNT + 400 - 320
    assert recall(large, whole) >= 0.95


def test_vectors_without_topics_are_searched_exactly_rather_than_badly() -> None:
    rng = np.random.default_rng(5)
    found = rng.standard_normal((_COUNT, 96))
    vectors = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("<f4")
    made = Partition(96)
    made.add(rows(vectors))
    made.build()
    query = (vectors[0] + vectors[1]) / np.linalg.norm(vectors[0] + vectors[1])
    best = [f"{number:06}" for number in np.argsort(-(vectors @ query))[:10]]
    assert len({id for id, _ in made.search(query.astype("<f4").tobytes(), 10)} & set(best)) >= 9
    assert not made.wants_index()


def test_a_deleted_row_leaves_no_vector_in_memory() -> None:
    made = Partition(_DIMENSIONS)
    vectors = matrix(100, 1)
    made.add(rows(vectors))
    made.keep([(f"{number:06}", "1") for number in range(100) if number not in (3, 99)])
    content = made.matrix.tobytes()
    assert vectors[3].tobytes() not in content and vectors[99].tobytes() not in content and vectors[4].tobytes() in content
    made.keep([])
    assert len(made) == 0 and not made.matrix.any() and made.search(vectors[0].tobytes(), 3) == []
