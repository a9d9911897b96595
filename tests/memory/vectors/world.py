"""Owners, documents, chunks and facts in a real database, with vectors that a test chooses."""

from __future__ import annotations

import array
import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, update

from app.core.records import UserRecord
from app.db.database import Database
from app.db.partitions import FACTS, bump
from app.db.schema import chunks, documents, facts
from app.db.users import Users
from app.db.vectors import Vectors
from app.memory.vectors.base import Hit, Partition

DIMENSIONS = 16
SPACE = f"test@1/{DIMENSIONS}"
_numbers = itertools.count(1)


def unit(values: Sequence[float]) -> bytes:
    """The vector of length 1 in this direction."""
    norm = math.sqrt(math.fsum(value * value for value in values))
    return array.array("f", [value / norm for value in values]).tobytes()


def rand(seed: int, dimensions: int = DIMENSIONS) -> bytes:
    """A vector by its number."""
    source = random.Random(seed)
    return unit([source.gauss(0, 1) for _ in range(dimensions)])


def axis(number: int, dimensions: int = DIMENSIONS) -> bytes:
    """One of the axes."""
    return unit([1.0 if place == number else 0.0 for place in range(dimensions)])


def cosine(left: bytes, right: bytes) -> float:
    """Exactly."""
    pairs = zip(array.array("f", left), array.array("f", right), strict=True)
    return math.fsum(a * b for a, b in pairs)


def ids(hits: Iterable[Hit]) -> list[str]:
    """In their order."""
    return [hit.id for hit in hits]


class World:
    """What is in the database; each method is one committed transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.source = Vectors(database)

    async def owner(self, user_id: str | None = None) -> str:
        """A new account."""
        user_id = user_id or f"user-{next(_numbers)}"
        await Users(self.database).create(UserRecord(user_id, user_id, "user", "x", datetime.now(UTC)))
        return user_id

    async def put(
        self, partition: Partition, rows: Iterable[tuple[str, bytes]], *, content: str = "1", document: str | None = None
    ) -> None:
        """Chunks (of one document) or kept facts with these vectors; those of the same id are replaced."""
        given = list(rows)

        def work(connection: Connection) -> None:
            table = facts if partition.collection == FACTS else chunks
            connection.execute(delete(table).where(table.c.id.in_([id for id, _ in given])))
            if partition.collection == FACTS:
                connection.execute(insert(facts), [_fact(partition, id, vector, content) for id, vector in given])
            else:
                name = document or f"document-{next(_numbers)}"
                connection.execute(insert(documents).values(_document(partition, name)))
                connection.execute(insert(chunks), [_chunk(partition, name, id, vector, content) for id, vector in given])
            bump(connection, partition.user_id, partition.collection)

        await self.database.write(work)

    async def remove(self, partition: Partition, gone: Iterable[str]) -> None:
        """Deletes chunks or facts."""
        names = list(gone)
        table = facts if partition.collection == FACTS else chunks

        def work(connection: Connection) -> None:
            connection.execute(delete(table).where(table.c.user_id == partition.user_id, table.c.id.in_(names)))
            bump(connection, partition.user_id, partition.collection)

        await self.database.write(work)

    async def move(self, partition: Partition, space: str) -> None:
        """All of a partition is embedded anew, in another space."""

        def work(connection: Connection) -> None:
            there = (chunks.c.user_id == partition.user_id) & (chunks.c.collection == partition.collection)
            connection.execute(update(chunks).where(there).values(space=space))
            bump(connection, partition.user_id, partition.collection)

        await self.database.write(work)


def partition(user_id: str, collection: str = "notes", space: str = SPACE) -> Partition:
    """A partition of an owner."""
    return Partition(user_id, collection, space)


async def until(what: Callable[[], Awaitable[bool]] | Callable[[], bool], timeout_s: float = 15) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = what()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.05)


def _document(partition: Partition, name: str) -> dict[str, object]:
    return {
        "id": name,
        "user_id": partition.user_id,
        "collection": partition.collection,
        "name": "a.txt",
        "format": "txt",
        "bytes": 1,
        "sha256": "0" * 64,
        "state": "ready",
        "created_at": datetime.now(UTC),
        "updated_at": datetime.now(UTC),
        "progress": 1.0,
        "chunks": 1,
        "characters": 1,
        "notes": [],
    }


def _chunk(partition: Partition, document: str, id: str, vector: bytes, content: str) -> dict[str, object]:
    return {
        "id": id,
        "document_id": document,
        "user_id": partition.user_id,
        "collection": partition.collection,
        "position": 0,
        "scope": "s",
        "text": "words",
        "words": "words",
        "place": {},
        "content_hash": f"{id}:{content}",
        "space": partition.space,
        "vector": vector,
    }


def _fact(partition: Partition, id: str, vector: bytes, content: str) -> dict[str, object]:
    return {
        "id": id,
        "user_id": partition.user_id,
        "text": "words",
        "state": "kept",
        "created_at": datetime.now(UTC),
        "updated_at": datetime.now(UTC),
        "content_hash": f"{id}:{content}",
        "space": partition.space,
        "vector": vector,
    }
