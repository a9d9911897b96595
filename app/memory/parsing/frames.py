"""What the parsing child says to the service: length-prefixed JSON, typed, and bounded on this side whatever it sends.

Reasons and notes are codes with numbers; the words for the owner are made here, so that nothing a document or a library says
gets into an answer. Frames: any number of `Progress` and `Blocks`, then one `Done` or one `Refused`.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal

import msgspec

from app.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from app.memory.parsing.blocks import BLOCK_CHARACTERS, MOST_BLOCKS, MOST_CHARACTERS, Block, Format, Kind

LENGTH: Final = struct.Struct(">I")
MOST_FRAME_BYTES: Final = 1 << 20
MOST_FRAME_BLOCKS: Final = 256
FRAME_CHARACTERS: Final = 32_000
"""The child sends a frame when it has gathered so many."""

Code = Literal[
    "unknown",
    "archive",
    "encrypted",
    "damaged",
    "empty",
    "scan",
    "unpacked",
    "parts",
    "pages",
    "text",
    "cell",
    "slow",
    "missing",
]
NoteCode = Literal["pages_without_text", "pages_failed", "rows_ragged", "encoding_guessed", "characters_lost"]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]

_REASONS: Final[dict[Code, tuple[type[InvalidRequest], str]]] = {
    "unknown": (UnsupportedMediaType, "This is no format that is read here: send txt, md, html, pdf, docx or csv."),
    "archive": (
        UnsupportedMediaType,
        "This is an archive or an Office file other than docx: unpack it, or save it as docx or pdf.",
    ),
    "encrypted": (InvalidRequest, "The document is encrypted: save it without a password and send it again."),
    "damaged": (
        InvalidRequest,
        "The document is damaged, or not what it claims to be: open it, save it anew and send it again.",
    ),
    "empty": (InvalidRequest, "The document holds no text."),
    "scan": (
        InvalidRequest,
        "No page of the document holds text, pictures of pages perhaps: send it with recognised text (OCR).",
    ),
    "unpacked": (InvalidRequest, "The document is too large when it is unpacked: split it, or send its text."),
    "parts": (
        InvalidRequest,
        f"The document falls into more than {MOST_BLOCKS} parts, or is nested too deep: split or simplify it.",
    ),
    "pages": (InvalidRequest, "The document has more than 10000 pages: split it."),
    "text": (PayloadTooLarge, f"The document holds more than {MOST_CHARACTERS // 1_000_000} million characters: split it."),
    "cell": (InvalidRequest, "A cell of the table holds more than 100000 characters: are its quotes closed? Shorten it."),
    "slow": (InvalidRequest, "Reading the document takes too long: split it, or send its text."),
    "missing": (UnsupportedMediaType, "This format cannot be read here: the packages of the extra `memory` are not installed."),
}
_NOTES: Final[dict[NoteCode, str]] = {
    "pages_without_text": "{0} of {1} pages hold no text (scans?).",
    "pages_failed": "{0} of {1} pages could not be read.",
    "rows_ragged": "{0} rows have another number of cells than the first.",
    "encoding_guessed": "The encoding was guessed: check letters with accents.",
    "characters_lost": "{0} characters could not be decoded.",
}


class Place(msgspec.Struct, omit_defaults=True):
    """Where a block begins, from 1."""

    page: Number | None = None
    line: Number | None = None
    row: Number | None = None


class WireBlock(msgspec.Struct, array_like=True):
    """A `Block` on its way."""

    text: Annotated[str, msgspec.Meta(max_length=BLOCK_CHARACTERS)]
    kind: Kind
    level: Annotated[int, msgspec.Meta(ge=0, le=6)]
    place: Place
    header: Annotated[str, msgspec.Meta(max_length=BLOCK_CHARACTERS)]

    @classmethod
    def of(cls, block: Block) -> WireBlock:
        return cls(block.text, block.kind, block.level, Place(**block.place), block.header)

    def block(self) -> Block:
        numbers = (("page", self.place.page), ("line", self.place.line), ("row", self.place.row))
        return Block(self.text, self.kind, self.level, {name: each for name, each in numbers if each is not None}, self.header)


class Progress(msgspec.Struct, tag="progress"):
    """How much of the file is read, 0 to 1."""

    done: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Blocks(msgspec.Struct, tag="blocks"):
    """Some blocks, in order."""

    blocks: Annotated[list[WireBlock], msgspec.Meta(max_length=MOST_FRAME_BLOCKS)]


class Note(msgspec.Struct, array_like=True):
    """Something that did not come out."""

    code: NoteCode
    numbers: Annotated[list[Number], msgspec.Meta(max_length=2)]

    def words(self) -> str:
        return _NOTES[self.code].format(*[*self.numbers, 0, 0])


class Done(msgspec.Struct, tag="done"):
    """The document was read to its end."""

    format: Format
    notes: Annotated[list[Note], msgspec.Meta(max_length=16)]


class Refused(msgspec.Struct, tag="refused"):
    """It was not, and why."""

    code: Code


Frame = Progress | Blocks | Done | Refused


def refusal(code: Code) -> InvalidRequest:
    """The error for the owner."""
    kind, words = _REASONS[code]
    return kind(words)
