"""The numbers by which an index of vectors sees that it is stale: one an owner and collection, changed with each change."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from app.db.database import Database
from app.db.schema import partitions

FACTS: Final = ":facts"
"""The collection of a person's facts; no collection of documents can be called so."""


def bump(connection: Connection, user_id: str, collection: str) -> None:
    """Notes a change of what is searched there. Called in the very transaction that makes the change."""
    row = partitions.c
    there = (row.user_id == user_id) & (row.collection == collection)
    if not connection.execute(update(partitions).where(there).values(generation=row.generation + 1)).rowcount:
        connection.execute(insert(partitions).values(user_id=user_id, collection=collection, generation=1))


def forget(connection: Connection, user_id: str) -> None:
    """Takes out what was noted of a deleted account."""
    connection.execute(delete(partitions).where(partitions.c.user_id == user_id))


class Partitions:
    """The table ``partitions``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def generation(self, user_id: str, collection: str) -> int:
        """The number now; 0 where nothing was ever there."""
        row = partitions.c
        query = select(row.generation).where(row.user_id == user_id, row.collection == collection)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none() or 0)
