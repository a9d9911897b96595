"""pgvector alone: its index, several services at once, rows that go with the account."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.core.errors import ConfigurationError
from app.db.location import locate
from app.memory.vectors.pgvector import PgVectorStore
from tests.memory.vectors.conftest import Site
from tests.memory.vectors.world import World, axis, cosine, ids, partition, rand

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.postgres,
    pytest.mark.parametrize("site", ["pgvector"], indirect=True, scope="module"),
]


@pytest_asyncio.fixture(loop_scope="module")
async def indexed(site: Site, world: World) -> AsyncIterator[PgVectorStore]:
    """A store that has indexes from 200 rows on."""
    made = PgVectorStore(world.source, world.database, locate(site.settings).url, exact_rows=200)
    await made.open()
    yield made
    await made.aclose()


async def sql(world: World, query: str) -> list[tuple[object, ...]]:
    """Rows of a query."""
    return await world.database.read(lambda connection: [tuple(row) for row in connection.exec_driver_sql(query)])


async def test_a_large_partition_gets_a_valid_index_that_searches_use(site: Site, world: World, indexed: PgVectorStore) -> None:
    here, neighbour = partition(await world.owner()), partition(await world.owner())
    rows = [(f"big-{number:04}", rand(number)) for number in range(1200)]
    await world.put(here, rows)
    await world.put(neighbour, [("neighbour", rand(1))])
    await indexed.search(here, rand(1), 10)
    await indexed.built()
    number = (await sql(world, f"SELECT number FROM vector_partitions WHERE user_id = '{here.user_id}'"))[0][0]
    assert await sql(world, f"SELECT indisvalid FROM pg_index WHERE indexrelid = 'vector_rows_p{number}'::regclass") == [
        (True,)
    ]
    right = 0
    for seed in range(5000, 5050):
        query = rand(seed)
        best = sorted(rows, key=lambda row: -cosine(query, row[1]))[:10]
        right += len({id for id, _ in best} & set(ids(await indexed.search(here, query, 10))))
    assert right >= 475
    used = await sql(world, f"SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname = 'vector_rows_p{number}'")
    assert used == [(True,)] or right == 500
    await world.remove(here, ["big-0001"])
    assert "big-0001" not in ids(await indexed.search(here, rand(1), 10))
    assert ids(await indexed.search(neighbour, rand(1), 10)) == ["neighbour"]


async def test_rows_go_with_the_account(site: Site, world: World, indexed: PgVectorStore) -> None:
    owner = await world.owner()
    here = partition(owner)
    await world.put(here, [("mine", axis(0))])
    assert ids(await indexed.search(here, axis(0), 1)) == ["mine"]
    await world.database.write(lambda connection: connection.exec_driver_sql(f"DELETE FROM users WHERE id = '{owner}'"))
    for table in ("vector_rows", "vector_partitions"):
        assert await sql(world, f"SELECT count(*) FROM {table} WHERE user_id = '{owner}'") == [(0,)]


async def test_nothing_deleted_is_left_after_refresh_and_forget(site: Site, world: World, indexed: PgVectorStore) -> None:
    owner = await world.owner()
    here = partition(owner)
    await world.put(here, [("stays", axis(0)), ("goes", axis(1))])
    await indexed.search(here, axis(0), 1)
    await world.remove(here, ["goes"])
    await indexed.refresh(here)
    assert await sql(world, f"SELECT id FROM vector_rows WHERE user_id = '{owner}'") == [("stays",)]
    await indexed.forget(owner, "notes")
    assert await sql(world, f"SELECT id FROM vector_rows WHERE user_id = '{owner}'") == []


async def test_two_services_at_once_bring_each_other_no_holes(site: Site, world: World, indexed: PgVectorStore) -> None:
    other = PgVectorStore(world.source, world.database, locate(site.settings).url)
    await other.open()
    here = partition(await world.owner())
    for turn in range(6):
        names = [f"t{turn}-{number}" for number in range(20)]
        await world.put(here, [(name, rand(number)) for number, name in enumerate(names)])
        found = await asyncio.gather(*(store.search(here, rand(0), 1000) for store in (indexed, other) * 3))
        assert all(set(names) <= set(ids(each)) for each in found)
        assert all(each == found[0] for each in found)
    await other.aclose()


async def test_without_the_extension_it_says_what_to_do(
    site: Site, world: World, indexed: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def without() -> bool:
        return False

    monkeypatch.setattr(indexed, "available", without)
    with pytest.raises(ConfigurationError, match="install pgvector"):
        await indexed.open()
