"""What comes out of a document: blocks of text with their place. Pure data, known to the service and to its parsing child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Format = Literal["txt", "md", "html", "pdf", "docx", "csv"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
Kind = Literal["heading", "text", "table", "code"]

MOST_CHARACTERS: Final = 20_000_000
"""Characters of text that one document may hold."""
MOST_BLOCKS: Final = 200_000
"""Blocks that one document may fall into."""
BLOCK_CHARACTERS: Final = 16_000
"""Longest block: whoever makes blocks cuts there, so that a frame, and what is held at a time, stays small."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of text of one kind.

    ``text``: what a reader sees, its lines and blank lines kept, without control and invisible characters. ``level``: of a
    heading, 1 to 6; else 0. ``place``: where it begins, some of ``page``, ``line``, ``row`` (each from 1); the next lines of
    ``text`` are the next lines, or rows, of the source. ``header``: of a table, the line to repeat above each part of it.
    """

    text: str
    kind: Kind = "text"
    level: int = 0
    place: Mapping[str, Any] = field(default_factory=dict)
    header: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole document. ``characters``: of all blocks together. ``notes``: what did not come out, in words for the owner."""

    format: Format
    blocks: tuple[Block, ...]
    characters: int
    notes: tuple[str, ...] = ()
