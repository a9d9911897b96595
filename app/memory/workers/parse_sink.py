"""Where the readers of the formats put what they find: cleaned, cut, counted, and sent on in frames."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

import msgspec

from app.memory.parsing.blocks import BLOCK_CHARACTERS, MOST_BLOCKS, MOST_CHARACTERS, Block, Format, Kind
from app.memory.parsing.frames import (
    FRAME_CHARACTERS,
    LENGTH,
    MOST_FRAME_BLOCKS,
    Blocks,
    Code,
    Done,
    Frame,
    Note,
    NoteCode,
    Progress,
    Refused,
    WireBlock,
)

# What nobody sees is not read: control characters, soft hyphens, zero-width and direction marks (joiners of scripts stay),
# tags, lone surrogates and noncharacters.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MOST_HEADING: Final = 500
_PROGRESS_S: Final = 0.2


class Refuse(Exception):
    """The document is not read; ``code`` says why."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code: Code = code


class Sink:
    """Takes blocks, sends frames. ``write`` gets whole frames as bytes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._encoder = msgspec.json.Encoder()
        self._waiting: list[WireBlock] = []
        self._waiting_characters = 0
        self._characters = 0
        self._blocks = 0
        self._notes: dict[NoteCode, list[int]] = {}
        self._told = time.monotonic()

    def emit(self, text: str, kind: Kind = "text", *, level: int = 0, header: str = "", **place: int) -> None:
        """A block of text; one that is empty once cleaned is left out. Raises Refuse."""
        text = clean(text)
        while text and not text.split("\n", 1)[0].strip():  # blank lines before it
            _, found, text = text.partition("\n")
            _advance(place, 1 if found else 0)
        text, header = text.rstrip(), clean(header).strip()[: BLOCK_CHARACTERS // 16]
        if kind == "heading":
            text = " ".join(text.split())
            if len(text) > _MOST_HEADING:
                kind, level = "text", 0
        while len(text) > BLOCK_CHARACTERS:
            at = _cut(text)
            self._put(Block(text[:at].rstrip(), kind, level, dict(place), header))
            _advance(place, text.count("\n", 0, at))
            text = text[at:]
        if text.strip():
            self._put(Block(text, kind, level, dict(place), header))

    def note(self, code: NoteCode, *numbers: int) -> None:
        """Something for the owner to know, once a code."""
        self._notes[code] = list(numbers)

    def progress(self, done: float) -> None:
        """How much of the file is read, 0 to 1; told a few times a second."""
        now = time.monotonic()
        if now - self._told >= _PROGRESS_S:
            self._told = now
            self._send(Progress(min(max(done, 0.0), 1.0)))

    def done(self, form: Format) -> None:
        """That was all."""
        self._flush()
        self._send(Done(form, [Note(code, numbers) for code, numbers in self._notes.items()]))

    def refuse(self, code: Code) -> None:
        """It ends here."""
        self._send(Refused(code))

    def _put(self, block: Block) -> None:
        self._blocks += 1
        self._characters += len(block.text) + len(block.header)
        if self._blocks > MOST_BLOCKS:
            raise Refuse("parts")
        if self._characters > MOST_CHARACTERS:
            raise Refuse("text")
        self._waiting.append(WireBlock.of(block))
        self._waiting_characters += len(block.text) + len(block.header)
        if self._waiting_characters >= FRAME_CHARACTERS or len(self._waiting) >= MOST_FRAME_BLOCKS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._send(Blocks(self._waiting))
        self._waiting, self._waiting_characters = [], 0

    def _send(self, frame: Frame) -> None:
        body = self._encoder.encode(frame)
        self._write(LENGTH.pack(len(body)) + body)


class Lines:
    """Gathers lines to blocks of some thousand characters that end, where possible, at a blank line."""

    GOOD: Final = 4000
    MOST: Final = 12_000

    def __init__(self, sink: Sink, key: str = "line", *, breaks: bool = True) -> None:
        self._sink = sink
        self._key = key
        self._breaks = breaks
        self._lines: list[str] = []
        self._start = 0
        self._size = 0

    def add(self, line: str, number: int) -> None:
        """Line ``number`` of the source; the numbers follow each other until `flush`."""
        if not self._lines:
            self._start = number
        self._lines.append(line)
        self._size += len(line) + 1
        at_end = not self._breaks or not line.strip()
        if self._size >= self.MOST or (at_end and self._size >= self.GOOD):
            self.flush()

    def flush(self, kind: Kind = "text", *, header: str = "") -> None:
        """What was gathered is a block."""
        if self._lines:
            self._sink.emit("\n".join(self._lines), kind, header=header, **{self._key: self._start})
        self._lines, self._size = [], 0


def clean(text: str) -> str:
    """``text`` with line ends as ``\\n``, and without what nobody sees."""
    if "\r" in text or "\f" in text or "\u2028" in text or "\u2029" in text:
        text = re.sub("\r\n?|[\f\u2028\u2029]", "\n", text)
    return _UNSEEN.sub("", text)


def _cut(text: str) -> int:
    """Where to cut a text that is too long for one block: behind a line, else a word, else anywhere."""
    for mark in ("\n", " "):
        at = text.rfind(mark, BLOCK_CHARACTERS // 2, BLOCK_CHARACTERS)
        if at > 0:
            return at + 1
    return BLOCK_CHARACTERS


def _advance(place: dict[str, int], lines: int) -> None:
    for key in ("line", "row"):
        if key in place:
            place[key] += lines
