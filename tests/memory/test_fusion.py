"""Two rankings into one: what counts how much, what is folded."""

from __future__ import annotations

import itertools

import pytest

from app.memory.fusion import Fused, fold, fuse, word_weight


def ids(found: list[Fused]) -> list[str]:
    return [each.id for each in found]


def test_what_both_rankings_like_comes_first() -> None:
    found = fuse(["a", "b", "c"], ["d", "b", "e"], words=1.0)
    assert ids(found)[0] == "b"
    assert all(0 < each.score <= 1 for each in found)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_the_first_of_both_has_the_score_one() -> None:
    for words in (0.0, 0.5, 1.0):
        assert fuse(["a", "b"], ["a", "c"], words=words)[0] == Fused("a", 1.0)
    assert fuse(["a"], [], words=0.7)[0] == Fused("a", 1.0)
    assert fuse([], ["a"], words=0.0)[0] == Fused("a", 1.0), "without vectors words count, whatever they cover"


def test_words_that_say_nothing_do_not_count() -> None:
    assert ids(fuse(["a", "b"], ["x", "y"], words=0.0)) == ["a", "b"]
    assert ids(fuse(["a", "b"], ["x", "y"], words=0.3)) == ["a", "b", "x", "y"]
    assert ids(fuse(["a", "b"], ["x", "y"], words=1.0)) == ["a", "x", "b", "y"]


def test_the_order_is_the_same_each_time() -> None:
    expected = ids(fuse(["a", "b", "c"], ["c", "b", "a"], words=1.0))
    assert expected[:2] == ["a", "c"]
    for order in itertools.permutations(["x", "y"]):
        assert set(ids(fuse(list(order), list(reversed(order)), words=1.0))) == {"x", "y"}
    assert fuse(["a", "a"], [], words=1.0) == [Fused("a", 1.0)]
    assert fuse([], [], words=1.0) == []


@pytest.mark.parametrize(("coverage", "weight"), [(0.0, 0.0), (0.25, 0.0), (0.425, 0.5), (0.6, 1.0), (1.0, 1.0)])
def test_words_count_by_what_they_cover(coverage: float, weight: float) -> None:
    assert word_weight(coverage) == pytest.approx(weight)


def test_near_duplicates_of_one_document_are_folded() -> None:
    ranking = [Fused("a", 1.0), Fused("b", 0.9), Fused("c", 0.8), Fused("gone", 0.7), Fused("d", 0.6)]
    words = frozenset(f"w{number}" for number in range(20))
    texts = {
        "a": ("one", words),
        "b": ("one", words | {"more"}),
        "c": ("two", words),
        "d": ("one", frozenset({"other"})),
    }
    assert ids(fold(ranking, texts, k=10)) == ["a", "c", "d"]
    assert ids(fold(ranking, texts, k=2)) == ["a", "c"]
    assert fold(ranking, {}, k=3) == []
