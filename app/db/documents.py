"""Documents as their owners see them, and the bytes of their files. Indexing is `app.db.indexing`, search `app.db.chunks`.

Every method takes the owner, and every query carries it: another's document and an absent one are the same.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, delete, distinct, func, insert, select, update

from app.core.errors import Conflict, TooManyRequests
from app.core.records import DocumentRecord
from app.db import partitions
from app.db.database import Database
from app.db.rows import record_of, records_of, values_of
from app.db.schema import document_pieces, documents, users

PIECE_BYTES: Final = 1 << 20
"""Bytes of each piece of a file but the last."""
_BUSY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class DocumentBounds:
    """How much one person may have: documents, bytes of their files, collections, documents that wait to be indexed."""

    documents: int = 10_000
    bytes: int = 2 << 30
    collections: int = 100
    queued: int = 1000


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection and what is in it. ``bytes``: of the files."""

    name: str
    documents: int
    chunks: int
    bytes: int


class Documents:
    """The tables ``documents`` and ``document_pieces``, for owners."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, document: DocumentRecord, bounds: DocumentBounds) -> DocumentRecord | None:
        """Adds a document that is ``storing``; or gives the one that has the same bytes in the same collection already.

        Raises Conflict and TooManyRequests where the owner has as much as ``bounds`` allow, Conflict where the account is gone.
        """

        def work(connection: Connection) -> DocumentRecord | None:
            twin = record_of(DocumentRecord, connection.execute(_twin(document)).first())
            if twin is not None:
                return twin
            account = select(users.c.id).where(users.c.id == document.user_id)
            if connection.execute(account).first() is None:
                raise Conflict("The account was deleted meanwhile.")
            _check(connection, document, bounds)
            connection.execute(insert(documents).values(values_of(document)))
            return None

        return await self._database.write(work)

    async def put(self, document: DocumentRecord, position: int, content: bytes) -> None:
        """Adds one piece of the file of a document that is ``storing``. Raises Conflict where the document is gone."""
        here = select(documents.c.id).where(_mine(document.id, document.user_id), documents.c.state == "storing")

        def work(connection: Connection) -> None:
            if connection.execute(here).first() is None:
                raise Conflict("The document was deleted while it was being stored.")
            row = {"document_id": document.id, "position": position, "content": content}
            connection.execute(insert(document_pieces).values(row))

        await self._database.write(work)

    async def finish(self, document: DocumentRecord) -> DocumentRecord:
        """Queues a document that is all stored; where its twin came first, that one stays and is given.

        Raises Conflict where the document is gone.
        """
        mine = _mine(document.id, document.user_id)
        query = update(documents).where(mine, documents.c.state == "storing").values(state="queued", claimed_until=None)

        def work(connection: Connection) -> DocumentRecord:
            twin = record_of(DocumentRecord, connection.execute(_twin(document)).first())
            if twin is not None:
                connection.execute(delete(documents).where(mine))
                return twin
            if not connection.execute(query).rowcount:
                raise Conflict("The document was deleted while it was being stored.")
            found = record_of(DocumentRecord, connection.execute(select(documents).where(mine)).one())
            assert found is not None  # noqa: S101  # `one` raises before that
            return found

        return await self._database.write(work)

    async def abandon(self, document: DocumentRecord) -> None:
        """Takes out a document that did not become whole."""
        query = delete(documents).where(_mine(document.id, document.user_id), documents.c.state == "storing")
        await self._database.write(lambda connection: connection.execute(query))

    async def get(self, document_id: str, *, user_id: str) -> DocumentRecord | None:
        """A user's document, or None: absent and another's are the same."""
        query = _shown(user_id).where(documents.c.id == document_id)
        return await self._database.read(lambda connection: record_of(DocumentRecord, connection.execute(query).one_or_none()))

    async def list(
        self, user_id: str, *, collection: str | None = None, limit: int = 100, after: str | None = None
    ) -> builtins.list[DocumentRecord]:
        """A user's documents, newest first; ``after``: the last id of the page before."""
        query = _shown(user_id).order_by(documents.c.id.desc()).limit(limit)
        if collection is not None:
            query = query.where(documents.c.collection == collection)
        if after is not None:
            query = query.where(documents.c.id < after)
        return await self._database.read(lambda connection: records_of(DocumentRecord, connection.execute(query)))

    async def collections(self, user_id: str) -> builtins.list[Collection]:
        """A user's collections by name. One without documents does not exist."""
        row = documents.c
        sums = (func.count(), func.sum(row.chunks), func.sum(row.bytes))
        query = (
            select(row.collection, *sums)
            .where(row.user_id == user_id, row.state != "storing")
            .group_by(row.collection)
            .order_by(row.collection)
        )

        def work(connection: Connection) -> builtins.list[Collection]:
            return [Collection(name, *(int(each) for each in figures)) for name, *figures in connection.execute(query)]

        return await self._database.read(work)

    async def piece(self, document_id: str, position: int, *, user_id: str) -> bytes | None:
        """One piece of a user's file; None past the last."""
        query = (
            select(document_pieces.c.content)
            .join(documents, documents.c.id == document_pieces.c.document_id)
            .where(_mine(document_id, user_id), document_pieces.c.position == position)
        )
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())

    async def pieces(self, document_id: str, *, user_id: str) -> AsyncGenerator[bytes, None]:
        """The file, piece by piece; ends early where it is deleted meanwhile."""
        position = 0
        while (content := await self.piece(document_id, position, user_id=user_id)) is not None:
            yield content
            position += 1

    async def requeue(self, document_id: str, *, user_id: str, now: datetime) -> DocumentRecord | None:
        """Has a document indexed again; one that waits or is being indexed stays as it is. None: there is no such one.

        What is found of it now is found until the new index of it stands.
        """
        mine = _mine(document_id, user_id)
        again = {"state": "queued", "progress": 0.0, "error": None, "claimed_until": None, "updated_at": now}
        ended = documents.c.state.in_(("ready", "failed"))

        def work(connection: Connection) -> DocumentRecord | None:
            connection.execute(update(documents).where(mine, ended).values(again))
            query = _shown(user_id).where(documents.c.id == document_id)
            return record_of(DocumentRecord, connection.execute(query).one_or_none())

        return await self._database.write(work)

    async def delete(self, document_id: str, *, user_id: str) -> DocumentRecord | None:
        """Removes a document with its file and chunks. Returns what it was, or None where there was none."""

        def work(connection: Connection) -> DocumentRecord | None:
            query = _shown(user_id).where(documents.c.id == document_id)
            found = record_of(DocumentRecord, connection.execute(query).one_or_none())
            if found is not None:
                connection.execute(delete(documents).where(_mine(document_id, user_id)))
                partitions.bump(connection, user_id, found.collection)
            return found

        return await self._database.write(work)

    async def some_of(self, user_id: str, collection: str, *, limit: int) -> builtins.list[str]:
        """Ids of a collection's documents, in no order, also of those that are being stored."""
        row = documents.c
        query = select(row.id).where(row.user_id == user_id, row.collection == collection).limit(limit)
        return await self._database.read(lambda connection: builtins.list(connection.execute(query).scalars()))

    async def delete_those(self, user_id: str, collection: str, ids: Sequence[str]) -> int:
        """Removes these documents of a collection with their files and chunks. Returns how many there were."""
        row = documents.c
        query = delete(documents).where(row.user_id == user_id, row.collection == collection, row.id.in_(ids))

        def work(connection: Connection) -> int:
            gone = connection.execute(query).rowcount
            if gone:
                partitions.bump(connection, user_id, collection)
            return gone

        return await self._database.write(work)

    async def not_embedded(self, user_id: str, collections: Sequence[str], space: str) -> int:
        """How many documents with chunks have no vectors of ``space``, or not of all their chunks."""
        row = documents.c
        query = select(func.count()).where(
            row.user_id == user_id, row.collection.in_(collections), row.chunks > 0, row.space.is_distinct_from(space)
        )
        return await self._database.read(lambda connection: int(connection.execute(query).scalar_one()))


def _mine(document_id: str, user_id: str) -> ColumnElement[bool]:
    return (documents.c.id == document_id) & (documents.c.user_id == user_id)


def _shown(user_id: str) -> Select[Any]:
    return select(documents).where(documents.c.user_id == user_id, documents.c.state != "storing")


def _twin(document: DocumentRecord) -> Select[Any]:
    same = (documents.c.collection == document.collection) & (documents.c.sha256 == document.sha256)
    return _shown(document.user_id).where(same, documents.c.id != document.id).order_by(documents.c.id).limit(1)


def _check(connection: Connection, document: DocumentRecord, bounds: DocumentBounds) -> None:
    row = documents.c
    own = row.user_id == document.user_id
    sums = select(func.count(), func.coalesce(func.sum(row.bytes), 0), func.count(distinct(row.collection))).where(own)
    count, size, names = connection.execute(sums).one()
    if count >= bounds.documents:
        raise Conflict(f"You have {bounds.documents} documents, which is the most. Delete some first.")
    if size + document.bytes > bounds.bytes:
        raise Conflict(f"Your documents may have {bounds.bytes >> 20} MiB together. Delete some first.")
    if names >= bounds.collections:
        here = select(row.id).where(own, row.collection == document.collection).limit(1)
        if connection.execute(here).first() is None:
            raise Conflict(f"You have {bounds.collections} collections, which is the most. Use one of them.")
    waiting = select(func.count()).where(own, row.state.in_(("storing", "queued")))
    if connection.execute(waiting).scalar_one() >= bounds.queued:
        raise TooManyRequests(
            f"{bounds.queued} of your documents wait to be indexed. Send more when some of them are.", retry_after=_BUSY_S
        )
