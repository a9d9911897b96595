"""What stores of vectors read of the database: which chunks and kept facts have a vector, and the vectors. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, FromClause, select

from app.db.database import Database
from app.db.partitions import FACTS, Partitions
from app.db.schema import chunks, facts, partitions

_BATCH = 500


class PartitionKey(Protocol):
    """See `app.memory.vectors.base.Partition`."""

    @property
    def user_id(self) -> str: ...

    @property
    def collection(self) -> str: ...

    @property
    def space(self) -> str: ...


class Vectors:
    """The `VectorSource` over the tables ``chunks`` and ``facts``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._partitions = Partitions(database)

    async def generation(self, user_id: str, collection: str) -> int:
        """See `VectorSource.generation`."""
        return await self._partitions.generation(user_id, collection)

    async def generations(self) -> dict[tuple[str, str], int]:
        """See `VectorSource.generations`."""
        row = partitions.c
        query = select(row.user_id, row.collection, row.generation)
        return await self._database.read(lambda connection: {(a, b): number for a, b, number in connection.execute(query)})

    async def ids(self, partition: PartitionKey) -> dict[str, str]:
        """See `VectorSource.ids`."""
        table, there = _rows(partition)
        query = select(table.c.id, table.c.content_hash).where(there)
        return await self._database.read(lambda connection: {row[0]: row[1] for row in connection.execute(query)})

    async def vectors(self, partition: PartitionKey, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """See `VectorSource.vectors`."""
        table, there = _rows(partition)

        def work(connection: Connection) -> list[tuple[str, bytes]]:
            found: list[tuple[str, bytes]] = []
            for start in range(0, len(ids), _BATCH):
                named = table.c.id.in_(ids[start : start + _BATCH])
                found += [
                    (row[0], bytes(row[1]))
                    for row in connection.execute(select(table.c.id, table.c.vector).where(there, named))
                ]
            return found

        return await self._database.read(work)


def _rows(partition: PartitionKey) -> tuple[FromClause, ColumnElement[bool]]:
    """The table of the partition, and the condition that its rows meet."""
    if partition.collection == FACTS:
        row = facts.c
        return facts, (row.user_id == partition.user_id) & (row.state == "kept") & _embedded(facts, partition)
    row = chunks.c
    owned = (row.user_id == partition.user_id) & (row.collection == partition.collection)
    return chunks, owned & _embedded(chunks, partition)


def _embedded(table: FromClause, partition: PartitionKey) -> ColumnElement[bool]:
    return (table.c.space == partition.space) & table.c.vector.is_not(None)
