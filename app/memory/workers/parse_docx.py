"""The text of a Word document: headings by style, lists, tables, notes. Macros, pictures and embedded files stay closed.

Only parts of the archive that hold text are decoded, through limits of `parse_zip`; XML with a document type is refused, so
there are no entities to expand and none to fetch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from app.memory.workers.parse_sink import Refuse, Sink
from app.memory.workers.parse_zip import Archive

_DOCUMENT: Final = "word/document.xml"
_MOST_DEPTH: Final = 256
_MOST_PARAGRAPH: Final = 1_000_000
_MOST_NOTES: Final = 20_000
_MOST_STYLES: Final = 5000
_GOOD: Final = 3000
_HEADING_NAME: Final = re.compile(r"heading ([1-9])", re.I)
_MARKS: Final = {"tab": " ", "ptab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}

_OUTLINE: Final = tuple("012345678")

Event = tuple[str, str, dict[str, str], str]
"""``start`` or ``end``, name without namespace, attributes without namespace, text (at the end)."""


def read_docx(file: BinaryIO, sink: Sink) -> None:
    """What a reader of the document sees. Raises Refuse."""
    archive = Archive(file)
    if _DOCUMENT not in archive:
        raise Refuse("archive")
    styles = _styles(archive)
    notes = {f"{kind} {number}": text for kind in ("footnote", "endnote") for number, text in _notes(archive, kind)}
    reader = _Reader(sink, styles, notes)
    for event, name, attributes, text in _events(archive, _DOCUMENT):
        reader.take(event, name, attributes, text)
    reader.end()


class _Reader:
    """The events of the main part, in order, to blocks."""

    def __init__(self, sink: Sink, styles: dict[str, int], notes: dict[str, str]) -> None:
        self._sink = sink
        self._styles = styles
        self._notes = notes
        self._words = _Words()
        self._level = 0
        self._item: int | None = None
        self._cited: list[str] = []
        self._gathered: list[str] = []
        self._size = 0
        self._tables = 0
        self._rows: list[list[str]] = []
        self._rows_size = 0
        self._header = ""

    def take(self, event: str, name: str, attributes: dict[str, str], text: str) -> None:
        """One event."""
        if not self._words.skipping:
            if event == "start":
                self._start(name, attributes)
            else:
                self._end(name)
        self._words.take(event, name, attributes, text)

    def end(self) -> None:
        """What is left."""
        self._flush()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tbl":
            if not self._tables:
                self._flush()
            self._tables += 1
        elif name == "tr" and self._tables == 1:
            self._rows.append([])
        elif name == "tc" and self._tables == 1 and self._rows:
            self._rows[-1].append("")
        elif name == "pStyle":
            self._level = self._styles.get(attributes.get("val", ""), self._level)
        elif name == "outlineLvl" and attributes.get("val") in _OUTLINE:
            self._level = min(int(attributes["val"]) + 1, 6)
        elif name == "numPr":
            self._item = self._item or 0
        elif name == "ilvl" and self._item is not None:
            value = attributes.get("val", "0")
            self._item = min(int(value), 8) if value.isdigit() else 0
        elif name in ("footnoteReference", "endnoteReference"):
            self._cite(name.removesuffix("Reference"), attributes.get("id", ""))

    def _end(self, name: str) -> None:
        if name == "p" and not self._words.nested:
            self._paragraph()
        elif name == "tbl":
            self._tables = max(0, self._tables - 1)
            if not self._tables:
                self._give_rows()
                self._header = ""
        elif name == "tr" and self._tables == 1 and self._rows_size > 4 * _GOOD:
            self._give_rows()

    def _cite(self, kind: str, number: str) -> None:
        text = self._notes.get(f"{kind} {number}")
        if text:
            self._words.add(f"[{number}]")
            self._cited.append(f"[{number}] {text}")

    def _paragraph(self) -> None:
        text = self._words.paragraph()
        level, item = self._level, self._item
        self._level, self._item = 0, None
        if self._tables:
            self._cell(text)
        elif level and text.strip():
            self._flush()
            self._sink.emit(text, "heading", level=level)
        elif text.strip():
            self._gather(f"{'  ' * item}- {text.strip()}" if item is not None else text, item is not None)
        for note in self._cited if not self._tables else ():
            self._gather(note, False)
        if not self._tables:
            self._cited = []

    def _gather(self, text: str, item: bool) -> None:
        together = item and bool(self._gathered) and self._gathered[-1].lstrip().startswith("- ")
        if self._size >= _GOOD and not together:
            self._flush()
            together = False
        if self._gathered:
            self._gathered.append("\n" if together else "\n\n")
        self._gathered.append(text)
        self._size += len(text)

    def _cell(self, text: str) -> None:
        text = " ".join(text.split())
        if text and self._rows and self._rows[-1]:
            self._rows[-1][-1] = f"{self._rows[-1][-1]} {text}".strip()
            self._rows_size += len(text)
            if self._rows_size > _MOST_PARAGRAPH:
                raise Refuse("cell")

    def _give_rows(self) -> None:
        lines = [" | ".join(row) for row in self._rows if any(row)]
        if not self._header and len(lines) > 1:
            self._header = lines.pop(0)
        self._sink.emit("\n".join(lines), "table", header=self._header)
        self._rows, self._rows_size = [], 0
        for note in self._cited:
            self._gather(note, False)
        self._cited = []

    def _flush(self) -> None:
        self._sink.emit("".join(self._gathered))
        self._gathered, self._size = [], 0


class _Words:
    """The text of the current paragraph: runs that are shown, tabs and breaks as spaces and line ends."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._paragraphs = 0
        self._fallback = 0
        self._run: list[str] | None = None
        self._vanished = False

    @property
    def nested(self) -> bool:
        """Whether the current paragraph stands in another (a text box)."""
        return self._paragraphs > 1

    @property
    def skipping(self) -> bool:
        """Whether this is what old programs show in place of the choice beside it."""
        return self._fallback > 0

    def add(self, text: str) -> None:
        """Text in the current run."""
        self._size += len(text)
        if self._size > _MOST_PARAGRAPH:
            raise Refuse("parts")
        (self._parts if self._run is None else self._run).append(text)

    def paragraph(self) -> str:
        """The text so far, taken."""
        text, self._parts, self._size = "".join(self._parts), [], 0
        return text

    def take(self, event: str, name: str, attributes: dict[str, str], text: str) -> None:
        """One event of the part."""
        if name == "Fallback":
            self._fallback += 1 if event == "start" else -1
        if self._fallback:
            return
        if event == "start":
            self._begin(name, attributes)
        elif name == "t":
            self.add(text)
        elif name in _MARKS:
            self.add(_MARKS[name])
        elif name == "r":
            self._end_run()
        elif name == "p":
            self._paragraphs = max(0, self._paragraphs - 1)
            if self._paragraphs:
                self._parts.append("\n")

    def _end_run(self) -> None:
        if self._run is not None and not self._vanished:
            self._parts += self._run
        self._run = None

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        if name == "p":
            self._paragraphs += 1
        elif name == "r" and self._run is None:
            self._run, self._vanished = [], False
        elif name == "vanish" and self._run is not None:
            self._vanished = attributes.get("val", "true") not in ("0", "false", "off")


def _events(archive: Archive, part: str) -> Iterator[Event]:
    """The elements of a part; none is kept. Raises Refuse."""
    depth = 0
    open_elements: list[Any] = []
    try:
        for event, element in iterparse(archive.open(part), events=("start", "end"), forbid_dtd=True):
            name = element.tag.rpartition("}")[2]
            if event == "start":
                depth += 1
                if depth > _MOST_DEPTH:
                    raise Refuse("parts")
                open_elements.append(element)
                yield "start", name, {key.rpartition("}")[2]: value for key, value in element.attrib.items()}, ""
            else:
                depth -= 1
                yield "end", name, {}, element.text or ""
                open_elements.pop()
                if open_elements:
                    open_elements[-1].clear()
    except ParseError as error:
        raise Refuse("damaged") from error
    except DefusedXmlException as error:
        raise Refuse("damaged") from error


def _styles(archive: Archive) -> dict[str, int]:
    """The heading level of each paragraph style that has one: of its own or of the style that it is based on."""
    if "word/styles.xml" not in archive:
        return {f"Heading{level}": min(level, 6) for level in range(1, 10)}
    levels: dict[str, int] = {}
    bases: dict[str, str] = {}
    style = ""
    for event, name, attributes, _ in _events(archive, "word/styles.xml"):
        if event == "end":
            continue
        value = attributes.get("val", "")
        if name == "style":
            style = attributes.get("styleId", "")
            if len(bases) + len(levels) > _MOST_STYLES:
                raise Refuse("parts")
        elif name == "name":
            found = _HEADING_NAME.fullmatch("heading 1" if value.lower() == "title" else value)
            if found:
                levels[style] = min(int(found.group(1)), 6)
        elif name == "basedOn":
            bases[style] = value
        elif name == "outlineLvl" and value in _OUTLINE:
            levels.setdefault(style, min(int(value) + 1, 6))
    _inherit(levels, bases)
    return levels


def _inherit(levels: dict[str, int], bases: dict[str, str]) -> None:
    """Gives a style the level of what it is based on, some steps far: they may go round in a circle."""
    for style in bases:
        base = style
        for _ in range(10):
            if base in levels:
                levels.setdefault(style, levels[base])
                break
            base = bases.get(base, "")


def _notes(archive: Archive, kind: str) -> Iterator[tuple[str, str]]:
    """Footnotes or endnotes: number and text."""
    part = f"word/{kind}s.xml"
    if part not in archive:
        return
    words, number, special, count = _Words(), "", False, 0
    for event, name, attributes, text in _events(archive, part):
        if name == kind and event == "start":
            number, special = attributes.get("id", ""), "type" in attributes
        words.take(event, name, attributes, text)
        if name == "p" and event == "end":
            words.add(" ")
        elif name == kind and event == "end":
            count += 1
            if count > _MOST_NOTES:
                raise Refuse("parts")
            body = " ".join(words.paragraph().split())
            if body and not special:
                yield number, body
