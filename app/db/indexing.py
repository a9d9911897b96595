"""What the indexer does to documents and chunks: claims, new chunks beside the old ones, and the exchange of the two at once.

A claim is a lease: ``claimed_until`` of the document. Every write of whoever holds it carries the value that it was given last
and sets a new one, so a worker that was taken for dead, and one whose document was deleted, change nothing any more.

Chunks that are being made lie in the collection `STAGED`, those that were replaced in `REPLACED`, until they are swept out. No
collection of a user can be called so, and every search names its collections: nobody finds them.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, bindparam, delete, func, insert, or_, select, update

from app.core.records import ChunkRecord, DocumentRecord
from app.db import partitions
from app.db.database import Database
from app.db.rows import record_of, values_of
from app.db.schema import chunks, documents

STAGED: Final = ":staged"
REPLACED: Final = ":replaced"
_SWEEP: Final = 500
_HASHES: Final = 500


@dataclass(frozen=True, slots=True)
class Unembedded:
    """A chunk that has no vector of the space that is wanted."""

    number: int
    id: str
    text: str
    content_hash: str


class Indexing:
    """The tables ``documents`` and ``chunks``, for the indexer: of all owners."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, *, now: datetime, until: datetime, after: str) -> DocumentRecord | None:
        """Takes the oldest document that waits, of the next owner behind ``after``: nobody's thousand keep others waiting.

        One whose claim has run out, because its worker died, waits too. None: nothing waits.
        """
        row = documents.c
        waits = row.state.in_(("queued", "indexing")) & _free(now)
        return await self._claim(waits, now=now, until=until, after=after, state="indexing")

    async def claim_to_embed(self, space: str, *, now: datetime, until: datetime, after: str) -> DocumentRecord | None:
        """Takes a document that is ready and whose chunks have no vectors of ``space``; otherwise as `claim`."""
        row = documents.c
        waits = (row.state == "ready") & (row.chunks > 0) & row.space.is_distinct_from(space) & _free(now)
        return await self._claim(waits, now=now, until=until, after=after)

    async def _claim(
        self, waits: ColumnElement[bool], *, now: datetime, until: datetime, after: str, **changes: Any
    ) -> DocumentRecord | None:
        def work(connection: Connection) -> DocumentRecord | None:
            found = record_of(DocumentRecord, connection.execute(_next(waits & (documents.c.user_id > after))).first())
            found = found or record_of(DocumentRecord, connection.execute(_next(waits)).first())
            if found is None:
                return None
            values = {"claimed_until": until, "updated_at": now, **changes}
            connection.execute(update(documents).where(documents.c.id == found.id).values(values))
            return replace(found, **values)

        if await self._database.read(lambda connection: connection.execute(_next(waits)).first()) is None:
            return None  # mostly nothing waits, and asking takes no turn of the writer
        return await self._database.write(work)

    async def hold(
        self, document: DocumentRecord, *, work: Callable[[Connection], None] | None = None, **changes: Any
    ) -> DocumentRecord | None:
        """Does ``work`` and changes the document in one transaction, if the claim still holds. None: it does not.

        ``changes`` should hold ``claimed_until``: the next end of the claim, or None to give it up.
        """
        row = documents.c
        mine = (row.id == document.id) & (row.user_id == document.user_id) & (row.claimed_until == document.claimed_until)
        query = update(documents).where(mine).values(changes)

        def both(connection: Connection) -> bool:
            if not connection.execute(query).rowcount:
                return False
            if work is not None:
                work(connection)
            return True

        return replace(document, **changes) if await self._database.write(both) else None

    async def stage(
        self, document: DocumentRecord, pieces: Sequence[ChunkRecord], scope: str, **changes: Any
    ) -> DocumentRecord | None:
        """Adds chunks that are being made, in place of those that an earlier try left at their positions; else as `hold`.

        ``scope``: of the collection, for the index of words.
        """
        rows = [values_of(each, collection=STAGED, scope=scope) for each in pieces]
        row = chunks.c
        earlier = delete(chunks).where(
            row.document_id == document.id, row.collection == STAGED, row.position.in_([each.position for each in pieces])
        )

        def work(connection: Connection) -> None:
            connection.execute(earlier)
            if rows:
                connection.execute(insert(chunks), rows)

        return await self.hold(document, work=work, **changes)

    async def exchange(self, document: DocumentRecord, count: int, **changes: Any) -> DocumentRecord | None:
        """Puts the first ``count`` staged chunks in the place of the old ones, at once; else as `hold`."""
        row = chunks.c
        own = row.document_id == document.id
        extra = delete(chunks).where(own, row.collection == STAGED, row.position >= count)
        old = update(chunks).where(own, row.collection == document.collection).values(collection=REPLACED)
        new = update(chunks).where(own, row.collection == STAGED).values(collection=document.collection)

        def work(connection: Connection) -> None:
            for query in (extra, old, new):
                connection.execute(query)
            partitions.bump(connection, document.user_id, document.collection)

        return await self.hold(document, work=work, chunks=count, **changes)

    async def sweep(self, document: DocumentRecord, collection: str = REPLACED) -> None:
        """Takes out a document's chunks that were replaced, or that were being made: in parts, for each takes its time."""
        row = chunks.c
        some = (
            select(row.number)
            .where(row.document_id == document.id, row.collection == collection)
            .order_by(row.number)
            .limit(_SWEEP)
        )
        query = delete(chunks).where(row.number.in_(some.scalar_subquery()))
        while await self._database.write(lambda connection: connection.execute(query).rowcount) == _SWEEP:
            pass

    async def known(self, user_id: str, space: str, hashes: Sequence[str]) -> dict[str, bytes]:
        """Vectors of ``space`` that the owner's chunks have already, by content hash."""
        row = chunks.c
        found: dict[str, bytes] = {}
        for start in range(0, len(hashes), _HASHES):
            query = select(row.content_hash, row.vector).where(
                row.user_id == user_id,
                row.content_hash.in_(hashes[start : start + _HASHES]),
                row.space == space,
                row.vector.is_not(None),
            )
            rows = await self._database.read(lambda connection, query=query: connection.execute(query).all())  # type: ignore[misc]
            found |= {content_hash: vector for content_hash, vector in rows}
        return found

    async def unembedded(self, document: DocumentRecord, space: str, *, limit: int) -> builtins.list[Unembedded]:
        """The next chunks of a document that have no vector of ``space``."""
        row = chunks.c
        query = (
            select(row.number, row.id, row.text, row.content_hash)
            .where(
                row.document_id == document.id,
                row.user_id == document.user_id,
                row.collection == document.collection,
                row.space.is_distinct_from(space),
            )
            .order_by(row.position)
            .limit(limit)
        )
        return await self._database.read(lambda connection: [Unembedded(*each) for each in connection.execute(query)])

    async def embed(
        self, document: DocumentRecord, space: str, vectors: Mapping[int, bytes], **changes: Any
    ) -> DocumentRecord | None:
        """Gives chunks, by number, their vectors; else as `hold`."""
        query = (
            update(chunks)
            .where(
                chunks.c.number == bindparam("of"), chunks.c.document_id == document.id, chunks.c.user_id == document.user_id
            )
            .values(space=space, vector=bindparam("made"))
        )
        rows = [{"of": number, "made": vector} for number, vector in vectors.items()]

        def work(connection: Connection) -> None:
            if rows:
                connection.execute(query, rows)
            partitions.bump(connection, document.user_id, document.collection)

        return await self.hold(document, work=work, **changes)

    async def any_ready(self) -> bool:
        """Whether there is anything that could have vectors."""
        query = select(documents.c.id).where(documents.c.state == "ready", documents.c.chunks > 0).limit(1)
        return await self._database.read(lambda connection: connection.execute(query).first() is not None)

    async def drop_abandoned(self, now: datetime) -> int:
        """Removes documents whose upload broke off with the process that took it. Returns how many."""
        query = delete(documents).where(documents.c.state == "storing", documents.c.claimed_until < now)
        return await self._database.write(lambda connection: connection.execute(query).rowcount)

    async def waiting(self) -> int:
        """How many documents wait to be indexed, or are being indexed."""
        query = select(func.count()).where(documents.c.state.in_(("queued", "indexing")))
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))


def _free(now: datetime) -> ColumnElement[bool]:
    return or_(documents.c.claimed_until.is_(None), documents.c.claimed_until < now)


def _next(waits: ColumnElement[bool]) -> Select[Any]:
    return select(documents).where(waits).order_by(documents.c.user_id, documents.c.id).limit(1)
