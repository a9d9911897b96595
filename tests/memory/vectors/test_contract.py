"""What every vector store promises, run against each."""

from __future__ import annotations

import array
import asyncio
import math
import random

import pytest

from app.core.errors import InvalidRequest
from app.db.partitions import FACTS
from app.memory.vectors.base import Hit, VectorStore
from tests.memory.vectors.conftest import KINDS
from tests.memory.vectors.world import DIMENSIONS, World, axis, cosine, ids, partition, rand, unit

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("site", KINDS, indirect=True, scope="module")]

HOSTILE = [
    "../../etc/passwd",
    "a/b",
    "..",
    "x'; DROP TABLE users; --",
    "%2e%2e%2f",
    "a\\b",
    "ñandú \u202e",
    "a" * 300,
    "C:\\nul",
    "{}[]$",
    " ",
]


NO_VECTORS = [b"", b"\0" * 4, b"\0" * 4 * DIMENSIONS, axis(0)[:-4], axis(0) + b"\0\0\0\0"]
NO_VECTORS += [array.array("f", [number] * DIMENSIONS).tobytes() for number in (math.nan, math.inf, -math.inf, 1.0, 1e-30)]


async def test_the_nearest_come_first_with_exact_scores(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    rows = [(f"c{number:03}", rand(number)) for number in range(300)]
    await world.put(here, rows)
    for seed in range(1000, 1020):
        query = rand(seed)
        hits = await store.search(here, query, 10)
        expected = sorted(((-cosine(query, vector), id) for id, vector in rows))[:10]
        assert ids(hits) == [id for _, id in expected]
        assert [hit.score for hit in hits] == pytest.approx([-score for score, _ in expected], abs=2e-6)


async def test_equal_scores_go_by_id_also_beyond_k(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    names = [f"c{number:03}" for number in range(200)]
    shuffled = random.Random(1).sample(names, len(names))
    await world.put(here, [(name, axis(0)) for name in shuffled] + [("far", axis(1)), ("best", unit([1, 0.01] + [0.0] * 14))])
    query = unit([1, 0.02] + [0.0] * 14)
    assert ids(await store.search(here, query, 5)) == ["best", *names[:4]]
    assert ids(await store.search(here, query, 1000)) == ["best", *names, "far"]


async def test_k_larger_than_there_is_and_nothing_there(store: VectorStore, world: World) -> None:
    owner = await world.owner()
    here = partition(owner)
    assert await store.search(here, rand(1), 10) == []
    await world.put(here, [("one", rand(1)), ("two", rand(2))])
    assert sorted(ids(await store.search(here, rand(1), 100))) == ["one", "two"]
    assert await store.search(partition(owner, "never"), rand(1), 3) == []


async def test_opposite_vectors_score_below_zero(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    await world.put(here, [("same", axis(0)), ("across", axis(1)), ("opposite", unit([-1.0] + [0.0] * 15))])
    found = await store.search(here, axis(0), 3)
    assert ids(found) == ["same", "across", "opposite"]
    assert [hit.score for hit in found] == pytest.approx([1, 0, -1], abs=1e-6)


async def test_a_change_is_found_by_the_next_search(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    await world.put(here, [("old", axis(0)), ("other", axis(5))])
    assert ids(await store.search(here, axis(1), 1)) == ["old"] or True
    for turn in range(5):
        await world.put(here, [(f"new-{turn}", axis(1))])
        assert f"new-{turn}" in ids(await store.search(here, axis(1), 10))
        await world.remove(here, [f"new-{turn}"])
        assert f"new-{turn}" not in ids(await store.search(here, axis(1), 10))
    await world.remove(here, ["old", "other"])
    assert await store.search(here, axis(0), 10) == []


async def test_edited_content_replaces_what_was(store: VectorStore, world: World) -> None:
    here = partition(await world.owner(), FACTS)
    await world.put(here, [("fact", axis(0))])
    assert (await store.search(here, axis(0), 1)) == [Hit("fact", 1.0)]
    await world.put(here, [("fact", axis(1))], content="2")
    assert (await store.search(here, axis(0), 1)) == [Hit("fact", 0.0)]
    assert (await store.search(here, axis(1), 1)) == [Hit("fact", 1.0)]


async def test_owners_and_collections_never_see_each_other(store: VectorStore, world: World) -> None:
    """Identical vectors, interleaved writes, warm caches, also after deletion."""
    owners = [await world.owner() for _ in range(3)]
    places = [partition(owner, name) for owner in owners for name in ("notes", "work", FACTS)]
    for turn in range(3):
        for number, place in enumerate(places):
            await world.put(place, [(f"{number}.{turn}.{each}", axis(each)) for each in range(3)])
        for number, place in enumerate(places):
            found = await store.search(place, axis(0), 1000)
            assert len(found) == 3 * (turn + 1)
            assert {hit.id.partition(".")[0] for hit in found} == {str(number)}
    await world.remove(places[0], [f"0.{turn}.{each}" for turn in range(3) for each in range(3)])
    assert await store.search(places[0], axis(0), 1000) == []
    await store.refresh(places[0])
    await store.forget(owners[1])
    for number, place in enumerate(places[1:], 1):
        assert {hit.id.partition(".")[0] for hit in await store.search(place, axis(0), 1000)} == {str(number)}


async def test_isolation_holds_among_concurrent_writers_and_searchers(store: VectorStore, world: World) -> None:
    places = [partition(await world.owner(), name) for name in ("notes", "notes", "work", FACTS)]

    async def live(number: int) -> None:
        place = places[number]
        for turn in range(6):
            await world.put(place, [(f"{number}.{turn}", axis(0))])
            found = ids(await store.search(place, axis(0), 1000))
            assert f"{number}.{turn}" in found
            assert {id.partition(".")[0] for id in found} == {str(number)}
            if turn % 2:
                await world.remove(place, [f"{number}.{turn}"])
                assert f"{number}.{turn}" not in ids(await store.search(place, axis(0), 1000))

    await asyncio.gather(*(live(number) for number in range(len(places))))


async def test_many_searches_at_once_agree(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    await world.put(here, [(f"c{number:03}", rand(number)) for number in range(100)])
    alone = await asyncio.gather(*(store.search(here, rand(seed), 5) for seed in range(200, 230)))
    assert alone == [await store.search(here, rand(seed), 5) for seed in range(200, 230)]


async def test_spaces_are_kept_apart(store: VectorStore, world: World) -> None:
    owner = await world.owner()
    here, small = partition(owner), partition(owner, space="other@2/4")
    await world.put(here, [("sixteen", axis(0))])
    await world.put(small, [("four", axis(0, 4))])
    assert ids(await store.search(here, axis(0), 5)) == ["sixteen"]
    assert ids(await store.search(small, axis(0, 4), 5)) == ["four"]
    newer = partition(owner, space=f"test@2/{DIMENSIONS}")
    await world.move(here, newer.space)
    assert await store.search(here, axis(0), 5) == []
    assert ids(await store.search(newer, axis(0), 5))[0] == "sixteen"


@pytest.mark.parametrize("vector", NO_VECTORS)
async def test_a_vector_that_is_none_is_refused(store: VectorStore, world: World, vector: bytes) -> None:
    here = partition(await world.owner())
    await world.put(here, [("one", axis(0))])
    with pytest.raises(InvalidRequest):
        await store.search(here, vector, 3)


@pytest.mark.parametrize("space", ["x", "x/0", "x/-1", "x/1e3", "x/99999999"])
async def test_a_space_without_a_usable_length_is_refused(store: VectorStore, world: World, space: str) -> None:
    with pytest.raises(InvalidRequest):
        await store.search(partition(await world.owner(), space=space), axis(0), 3)


async def test_a_damaged_row_is_left_out(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    nan = array.array("f", [math.nan] * DIMENSIONS).tobytes()
    await world.put(here, [("good", axis(0)), ("nan", nan), ("zero", bytes(4 * DIMENSIONS)), ("short", b"abcd")])
    assert ids(await store.search(here, axis(0), 10)) == ["good"]
    await world.put(here, [("more", axis(1))])
    assert ids(await store.search(here, axis(0), 10)) == ["good", "more"]


async def test_hostile_names_are_only_names(store: VectorStore, world: World) -> None:
    owner = await world.owner()
    for number, name in enumerate(HOSTILE):
        place = partition(owner, name)
        await world.put(place, [(f"{number}' OR 1=1; ../", axis(0))])
        assert ids(await store.search(place, axis(0), 10)) == [f"{number}' OR 1=1; ../"]
        await store.refresh(place)
    for number, name in enumerate(HOSTILE):
        assert ids(await store.search(partition(owner, name), axis(0), 10)) == [f"{number}' OR 1=1; ../"]
        await store.forget(owner, name)
    await store.forget("../..", "../..")


async def test_forget_drops_one_collection_or_all_and_it_comes_back_only_from_the_database(
    store: VectorStore, world: World
) -> None:
    owner, other = await world.owner(), await world.owner()
    notes, work, foreign = partition(owner), partition(owner, "work"), partition(other)
    for place in (notes, work, foreign):
        await world.put(place, [(f"{place.user_id}.{place.collection}", axis(0))])
        await store.search(place, axis(0), 1)
    await store.forget(owner, "notes")
    await store.forget(owner)
    await store.forget("nobody")
    for place in (notes, work, foreign):
        assert ids(await store.search(place, axis(0), 1)) == [f"{place.user_id}.{place.collection}"]


async def test_a_search_given_up_leaves_the_store_sound(store: VectorStore, world: World) -> None:
    here = partition(await world.owner())
    await world.put(here, [(f"c{number:04}", rand(number)) for number in range(1500)])
    for wait in (0.0, 0.001, 0.005, 0.02, 0.05):
        task = asyncio.create_task(store.search(here, rand(1), 5))
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    found = await asyncio.gather(*(store.search(here, rand(number), 1) for number in range(20)))
    assert [ids(each) for each in found] == [[f"c{number:04}"] for number in range(20)]
