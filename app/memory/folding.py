"""Pieces of a document as the records that are stored: with their words folded and their text hashed. Pure computing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.ids import uuid7
from app.core.records import ChunkRecord, DocumentRecord
from app.memory.chunking import Piece
from app.memory.words import words_of_text


@dataclass(frozen=True, slots=True)
class Folded:
    """A piece, ready to be embedded and written. ``words``, ``hash``: see `app.core.records.ChunkRecord`."""

    text: str
    words: str
    hash: str
    place: Mapping[str, Any]


def folded(pieces: Iterator[Piece], most: int) -> list[Folded]:
    """The next ``most`` of them; empty at the end."""
    return [
        Folded(each.text, " ".join(words_of_text(each.text)), hashlib.sha256(each.text.encode()).hexdigest(), each.place)
        for each in itertools.islice(pieces, most)
    ]


def record_of_piece(
    document: DocumentRecord, position: int, piece: Folded, space: str | None, vector: bytes | None
) -> ChunkRecord:
    """A new chunk of ``document``. Without a vector it is of no space."""
    return ChunkRecord(
        id=uuid7(),
        document_id=document.id,
        user_id=document.user_id,
        collection=document.collection,
        position=position,
        text=piece.text,
        words=piece.words,
        place=piece.place,
        content_hash=piece.hash,
        space=None if vector is None else space,
        vector=vector,
    )
