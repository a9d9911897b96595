"""Chunks as a search reads them: which hold a word, and what stands in them. Ranking is `app.memory.search`.

The owner stands in every query as a value of its own, beside whatever an index is asked. A word reaches SQLite's index as one
quoted string and PostgreSQL's through ``plainto_tsquery``: none is ever read as an expression.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, func, select, text

from app.db.database import Database
from app.db.schema import chunks, documents

_WORD: Final = re.compile(r"[0-9A-Za-z\u0080-\U0010ffff]{1,200}")
_MATCH: Final = text(
    # The words first: SQLite then walks its index once, and looks at no chunk that does not hold the word.
    "SELECT c.number FROM chunk_words CROSS JOIN chunks c ON c.number = chunk_words.rowid"
    " WHERE chunk_words MATCH :expression AND c.user_id = :user_id AND c.collection IN :collections LIMIT :most"
).bindparams(bindparam("collections", expanding=True))
_TSQUERY: Final = text(
    "SELECT number FROM chunks WHERE to_tsvector('simple', words) @@ plainto_tsquery('simple', :word)"
    " AND user_id = :user_id AND collection IN :collections ORDER BY number LIMIT :most"
).bindparams(bindparam("collections", expanding=True))


@dataclass(frozen=True, slots=True)
class FoundChunk:
    """A chunk and the name of its document. ``words``: its text folded, see `app.core.records.ChunkRecord`."""

    number: int
    id: str
    document_id: str
    name: str
    collection: str
    position: int
    text: str
    words: str
    place: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """Of what is searched: number of chunks, and characters of their documents."""

    chunks: int
    characters: int


class Chunks:
    """The table ``chunks`` and its index of words, for searches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def holding(
        self, user_id: str, collections: Sequence[str], words: Sequence[str], *, scope: str, most: int
    ) -> dict[str, list[int]]:
        """By word, the numbers of the owner's chunks in these collections that hold it: at most ``most``, the oldest.

        ``scope``: the words of the index under which the owner's chunks (of one collection) stand, so that SQLite reads no
        others. What is not a word of `app.memory.words` is found nowhere.
        """
        asked = [word for word in words if _WORD.fullmatch(word)]
        named = {"user_id": user_id, "collections": list(collections), "most": most}

        def work(connection: Connection) -> dict[str, list[int]]:
            if connection.dialect.name == "sqlite":
                return {
                    word: list(connection.execute(_MATCH, {**named, "expression": _expression(scope, word)}).scalars())
                    for word in asked
                }
            return {word: list(connection.execute(_TSQUERY, {**named, "word": word}).scalars()) for word in asked}

        return await self._database.read(work) if asked and collections else {}

    async def by_number(self, user_id: str, collections: Sequence[str], numbers: Sequence[int]) -> list[FoundChunk]:
        """Those of these chunks that are the owner's and still there, in no order."""
        return await self._read(_found(user_id, collections).where(chunks.c.number.in_(numbers)))

    async def by_id(self, user_id: str, collections: Sequence[str], ids: Sequence[str]) -> list[FoundChunk]:
        """Those of these chunks that are the owner's and still there, in no order."""
        return await self._read(_found(user_id, collections).where(chunks.c.id.in_(ids)))

    async def size(self, user_id: str, collections: Sequence[str]) -> Size:
        """How much there is to search, as the documents say it."""
        row = documents.c
        sums = (func.coalesce(func.sum(row.chunks), 0), func.coalesce(func.sum(row.characters), 0))
        query = select(*sums).where(row.user_id == user_id, row.collection.in_(collections), row.chunks > 0)
        return await self._database.read(lambda connection: Size(*(int(each) for each in connection.execute(query).one())))

    async def _read(self, query: Select[Any]) -> list[FoundChunk]:
        return await self._database.read(lambda connection: [FoundChunk(*row) for row in connection.execute(query)])


def _expression(scope: str, word: str) -> str:
    """What is asked of SQLite's index: all words of ``scope``, and ``word``. Letters and digits only: no quote ends early."""
    narrow = " AND ".join(f'scope : "{each}"' for each in scope.split() if _WORD.fullmatch(each))
    return f'{narrow} AND words : "{word}"' if narrow else f'words : "{word}"'


def _found(user_id: str, collections: Sequence[str]) -> Select[Any]:
    row = chunks.c
    return (
        select(
            row.number,
            row.id,
            row.document_id,
            documents.c.name,
            row.collection,
            row.position,
            row.text,
            row.words,
            row.place,
        )
        .join(documents, documents.c.id == row.document_id)
        .where(row.user_id == user_id, documents.c.user_id == user_id, row.collection.in_(collections))
    )
