"""Blocks of a document to the pieces that are embedded, searched and cited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.memory.parsing.blocks import Block


@dataclass(frozen=True, slots=True)
class Piece:
    """What is embedded, searched and cited as one.

    ``text``: begins with the line of its headings, ``A > B``, where it has some: an embedder, a search by words and a model see
    what it is about. ``place``: where it begins: ``section`` (the same path) and ``page``, ``line`` or ``row``.
    """

    text: str
    place: Mapping[str, Any] = field(default_factory=dict)


def chunk(blocks: Iterable[Block]) -> Iterator[Piece]:
    """The pieces of a document, in order; the same for the same blocks. Pure computing: call it in a thread."""
    for block in blocks:
        yield Piece(block.text, block.place)
