"""Blocks of a document to the pieces that are embedded, searched and cited: cut where the document itself is cut.

A piece begins with the path of its headings, ``A > B``, on a line of its own, and never reaches over a page or a heading of
the first two levels. Small neighbours are joined; a paragraph that is too long is cut at the ends of sentences, else at words;
code and tables stay whole where they fit, else they are cut at lines, a table's header repeated. It reads no meaning: two
subjects in one paragraph stay together.

Lengths are weights: a character of plain prose counts 1, one of a script that takes more tokens counts more, so that a piece
never passes the 512 tokens that sentence models read, whatever the language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from app.memory.parsing.blocks import Block

LIMIT: Final = 900
"""Weight of a piece at most: about 200 tokens of English or Spanish prose."""
WHOLE: Final = 700
"""A paragraph, a table or code of this weight is never cut."""
PART: Final = 480
"""So is a sentence or a line of this weight."""
CUT: Final = 210
"""Longer ones are cut to parts of this weight, some of which make a piece."""
OVERLAP: Final = 140
"""The last sentence is said again in the next piece when a paragraph goes on there, if it weighs no more than this."""
_MOST_PATH: Final = 160
_MOST_HEADER: Final = 160
_MOST_TITLE: Final = 100
"""A longer heading stands cut in the path, and whole below it."""
_MOST_SECTION: Final = 300
_SEPARATE_LEVEL: Final = 2

_HEAVY = re.compile("[\u0100-\u036f\u0e00-\u0eff\u1000-\u1fff\u2c00-\uabff\uf900-\ufaff\ufe00-\uffef]")
_HEAVIER = re.compile("[\U00010000-\U0010ffff]")
_MARKS = re.compile(r"[^\w\s]|[0-9_]")
_RUNS = re.compile(r"\S{25,}|[b-df-hj-np-tv-xz]{5,}", re.IGNORECASE | re.ASCII)
_BREAKS = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"\n(?:[ \t]*\n)+")
_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]{0,3}\s+|[。！？]\s*|\n(?=[ \t]*(?:[-•*|–]|[0-9]{1,3}[.)])\s)|\n(?=[ \t]{2})")
_LINE = re.compile(r"\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is embedded, searched and cited as one.

    ``text``: begins with the line of its headings, where it has some: an embedder, a search by words and a model see what it is
    about. ``place``: where it begins: ``section`` (the same path) and ``page``, ``line`` or ``row``.
    """

    text: str
    place: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A run of text that is not cut any more. ``gap``: what stands between it and the one before, if that is in the piece."""

    text: str
    gap: str
    place: Mapping[str, Any]
    header: str = ""
    goes_on: bool = False


def chunk(blocks: Iterable[Block]) -> Iterator[Piece]:
    """The pieces of a document, in order; the same for the same blocks. Pure computing: call it in a thread."""
    packer = _Packer()
    for block in blocks:
        if block.kind == "heading":
            yield from packer.head(block)
        else:
            for unit in _units(block):
                yield from packer.add(unit)
    yield from packer.end()


def weight(text: str) -> int:
    """What a text weighs: at least its characters, twice its tokens or more in what people write and in most noise."""
    total = len(text)
    if not text.isascii():
        total += _count(_HEAVY, text) + 2 * _count(_HEAVIER, text)
    total += _count(_MARKS, text) + _count(_RUNS, text)
    return max(total, 3 * len(_BREAKS.findall(text)))


def _count(pattern: re.Pattern[str], text: str) -> int:
    return len(text) - len(pattern.sub("", text))


class _Packer:
    """Gathers units to pieces; keeps the path of headings, and which of them no piece has shown yet."""

    def __init__(self) -> None:
        self._path: list[tuple[int, str]] = []
        self._unseen = 0  # so many headings at the end of the path
        self._unseen_place: Mapping[str, Any] = {}
        self._text = ""
        self._weight = 0
        self._place: dict[str, Any] = {}
        self._page: int | None = None
        self._header = ""
        self._last = ""
        self._bare = False

    def head(self, block: Block) -> Iterator[Piece]:
        """A heading: it opens a section, and closes those of its level and below."""
        title = " ".join(block.text.split())
        short = title[: _fitting(title, 0, _MOST_TITLE)]
        short = title if short == title else f"{short}…"
        if self._unseen and (self._path[-1][0] >= block.level or not self._room_for(short)):
            yield from self._show()  # nothing will stand below it, or too many do: it is not to be lost
        if block.level <= _SEPARATE_LEVEL or self._weight > LIMIT // 2:
            yield from self._close()
        while self._path and self._path[-1][0] >= block.level:
            self._path.pop()
        self._path.append((block.level, short))
        if not self._unseen:
            self._unseen_place = block.place
        self._unseen += 1
        if short != title:
            for unit in _units(Block(title, place=block.place)):
                yield from self.add(unit)

    def add(self, unit: _Unit) -> Iterator[Piece]:
        """A unit, into this piece or the next."""
        size = weight(unit.text) + 3
        repeats = bool(unit.header) and unit.header != self._header
        headings = sum(weight(title) + 3 for title in self._unseen_titles())
        overlap = ""
        if self._text and (
            self._weight + headings + size + repeats * weight(unit.header) > LIMIT or self._elsewhere(unit.place)
        ):
            if unit.goes_on and not self._unseen and not self._elsewhere(unit.place):
                overlap = self._last
            yield from self._close()
        if not self._text:
            self._begin(unit.place)
            if overlap and weight(overlap) <= OVERLAP and self._weight + weight(overlap) + size < LIMIT:
                self._append(overlap, "\n")
        else:
            yield from self._show()
        if unit.header and unit.header != self._header:
            self._append(unit.header, "\n" if self._bare else "\n\n")
            self._append(unit.text, "\n")
        else:  # right below the line of headings, nothing has gone before
            self._append(unit.text, "\n" if self._bare and not overlap else unit.gap)
        self._header, self._last, self._bare = unit.header, unit.text, False

    def end(self) -> Iterator[Piece]:
        """The document is over: what is gathered is a piece; a heading that nothing followed is one as well."""
        yield from self._show()
        yield from self._close()

    def _close(self) -> Iterator[Piece]:
        if self._text:
            yield Piece(self._text, self._place)
        self._text, self._weight, self._header, self._last = "", 0, "", ""

    def _begin(self, place: Mapping[str, Any]) -> None:
        """Starts a piece with the line of its headings."""
        self._place = dict(self._unseen_place if self._unseen else place)
        self._page = place.get("page")
        self._unseen, self._bare = 0, True
        if self._path:
            self._place["section"] = " > ".join(title for _, title in self._path)[:_MOST_SECTION]
            self._append(_line_of([title for _, title in self._path])[0], "")

    def _show(self) -> Iterator[Piece]:
        """Headings that no piece has shown, as lines of this one if there is room, else as the line of a new one."""
        titles = self._unseen_titles()
        if titles and self._text and self._weight + sum(weight(title) + 3 for title in titles) <= LIMIT:
            for title in titles:
                self._append(title, "\n\n")
            self._unseen, self._last, self._header = 0, "", ""
        elif titles:
            yield from self._close()
            self._begin(self._unseen_place)

    def _room_for(self, title: str) -> bool:
        """Whether the line of headings still shows all those that no piece has shown, with one more."""
        return _line_of([*(each for _, each in self._path), title])[1] > self._unseen

    def _append(self, text: str, gap: str) -> None:
        self._weight += weight(text) + (3 if self._text else 0)  # at most, for the space between
        self._text += (gap if self._text else "") + text

    def _unseen_titles(self) -> list[str]:
        return [title for _, title in self._path[len(self._path) - self._unseen :]]

    def _elsewhere(self, place: Mapping[str, Any]) -> bool:
        return place.get("page") != self._page


def _line_of(titles: list[str]) -> tuple[str, int]:
    """The last headings of a path that have room in a line, one at least; and how many they are."""
    line, shown = "", 0
    for title in reversed(titles):
        longer = f"{title} > {line}" if shown else title
        if shown and weight(longer) > _MOST_PATH:
            return f"… > {line}", shown
        line, shown = longer, shown + 1
    return line, shown


def _units(block: Block) -> Iterator[_Unit]:
    """A block cut where it has to be."""
    header = block.header if weight(block.header) <= _MOST_HEADER else ""
    text = block.text if header == block.header else f"{block.header}\n{block.text}"
    if block.kind != "text":
        if weight(text) + weight(header) <= WHOLE:
            yield _Unit(text, "\n\n", block.place, header)
            return
        for at, line, _ in _split(text, _LINE):
            for unit in _parts(line, "\n", _later(block.place, text, at), header):
                yield unit
        return
    for at, paragraph, _ in _split(text, _PARAGRAPH):
        place = _later(block.place, text, at)
        if weight(paragraph) <= WHOLE:
            yield _Unit(paragraph, "\n\n", place)
            continue
        gap, goes_on = "\n\n", False
        for start, sentence, after in _split(paragraph, _SENTENCE):
            for unit in _parts(sentence, gap, _later(place, paragraph, start), "", goes_on=goes_on):
                yield unit
                goes_on = True
            gap = "\n" if "\n" in after else " " if after[-1:].isspace() else ""


def _parts(text: str, gap: str, place: Mapping[str, Any], header: str, *, goes_on: bool = False) -> Iterator[_Unit]:
    """A sentence or a line, at words if it is too long, anywhere if it has none."""
    at, whole = 0, weight(text) <= PART
    while at < len(text):
        size = len(text) if whole else _fitting(text, at, CUT)
        end = at + size
        if end < len(text):
            space = max(text.rfind(" ", at + size // 2, end), text.rfind("\n", at + size // 2, end))
            end = space + 1 if space > at else end
        part = text[at:end].strip() if header or at else text[at:end].rstrip()
        if part:
            yield _Unit(part, gap, _later(place, text, at), header, goes_on)
            gap, goes_on = " " if text[end - 1].isspace() else "", True
        at = end


def _fitting(text: str, at: int, most: int) -> int:
    """How many characters from ``at`` weigh no more than ``most``, within a few; one at least."""
    size = min(most, len(text) - at)
    while size > 1 and (heavy := weight(text[at : at + size])) > most:
        size = max(1, min(size - 1, size * most // heavy))
    return size


def _split(text: str, ends: re.Pattern[str]) -> Iterator[tuple[int, str, str]]:
    """What stands between the ends: where it begins, itself with the marks of its end, the space after it. None is blank."""
    at = 0
    for found in [*ends.finditer(text), None]:
        end = found.end() if found else len(text)
        bare = text[at:end].rstrip()
        first = len(bare) - len(bare.lstrip("\n"))
        if bare:
            yield at + first, bare[first:], text[at + len(bare) : end]
        at = end


def _later(place: Mapping[str, Any], text: str, at: int) -> Mapping[str, Any]:
    """The place of what begins ``at`` in ``text``: its lines, or rows, are those of the source."""
    lines = text.count("\n", 0, at)
    if not lines:
        return place
    return {key: value + lines if key in ("line", "row") else value for key, value in place.items()}
