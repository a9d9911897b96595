"""HTML as a reader sees it: headings, paragraphs, lists, tables, code; no scripts, no styles, nothing hidden, nothing fetched.

It follows tags, not the rules of a browser: what a style sheet hides, or white letters on white, is not judged.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import BinaryIO, Final

from app.memory.workers.parse_detect import read_string
from app.memory.workers.parse_sink import Refuse, Sink

_SKIPPED: Final = frozenset(
    "script style template noscript svg iframe object canvas audio video select datalist head math map".split()  # noqa: SIM905
)
_VOID: Final = frozenset("area base br col embed hr img input link meta param source track wbr".split())  # noqa: SIM905
_CLOSED_BY_ITSELF: Final = frozenset("p li dt dd td th tr option".split())  # noqa: SIM905
_CLOSED_BY_PARENT: Final = {"li": ("ul", "ol", "menu"), "td": ("tr", "table"), "th": ("tr", "table"), "tr": ("table",)}
_BLOCKS: Final = frozenset(
    """address article aside blockquote body caption dd details dialog div dl dt fieldset figcaption figure footer form header
    hgroup hr html legend li main menu nav ol p section summary ul""".split()  # noqa: SIM905
)
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_HIDING: Final = re.compile(r"display:none|visibility:hidden|font-size:0(?![.1-9])")
_SPACE: Final = re.compile(r"[ \t\n]+")
_FEED: Final = 1 << 20
_MOST_TAG: Final = 6 << 20
"""Characters of one tag: pages hold whole pictures in an attribute."""
_GOOD: Final = 3000
_MOST_CELLS: Final = 500


def read_html(file: BinaryIO, sink: Sink) -> None:
    """What a page shows. Raises Refuse."""
    text = read_string(file, sink, html=True)
    # A comment that nobody closed goes to the end of the page; html.parser would look for its end again and again.
    open_comment = text.find("<!--", text.rfind("-->") + 1)
    text = text if open_comment < 0 else text[:open_comment]
    page = _Page(sink)
    for at in range(0, len(text), _FEED):
        page.feed(text[at : at + _FEED])
        if len(page.rawdata) > _MOST_TAG:
            raise Refuse("damaged")
        sink.progress(at / len(text))
    page.close()
    page.end()


class _Page(HTMLParser):
    """Turns tags into blocks. Depth costs nothing: it counts the tags that matter and keeps no tree."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(convert_charrefs=True)
        self._sink = sink
        self._hidden = ""  # the tag that hides what is in it
        self._hidden_depth = 0
        self._text: list[str] = []
        self._paragraphs: list[str] = []
        self._size = 0
        self._heading = 0
        self._pre = 0
        self._tables = 0
        self._rows: list[list[str]] = []
        self._rows_size = 0
        self._header = ""
        self._lists: list[int | None] = []
        self._title: str | None = None
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = self._title is None
        if self._hidden:
            if tag == "body" and self._hidden == "head":  # a head that nobody closed
                self._hidden, self._hidden_depth = "", 0
            elif not self._closes_hidden(tag):
                self._hidden_depth += tag == self._hidden
                return
            else:  # a paragraph, an item or a cell that nobody closed
                self._hidden, self._hidden_depth = "", 0
        if (tag in _SKIPPED or _hides(attrs)) and tag not in _VOID:
            self._hidden, self._hidden_depth = tag, 1
            return
        self._start(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID and not self._hidden:
            self._start(tag)
        elif tag not in _SKIPPED:  # <div/> is <div> in HTML
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if self._hidden:
            self._hidden_depth -= tag == self._hidden or tag in _CLOSED_BY_PARENT.get(self._hidden, ())
            if self._hidden_depth <= 0:
                self._hidden = ""
        elif tag in _HEADINGS:
            self._end_heading()
        elif tag == "pre":
            self._end_pre()
        elif tag == "table":
            self._end_table()
        elif tag in ("td", "th"):
            self._text.append(" ")
        elif tag in _BLOCKS:
            self._break()
            if tag in ("ul", "ol", "menu") and self._lists:
                self._lists.pop()

    def _closes_hidden(self, tag: str) -> bool:
        if self._hidden == "p":
            return tag in _BLOCKS or tag in _HEADINGS or tag in ("table", "pre")
        return tag == self._hidden and tag in _CLOSED_BY_ITSELF

    def handle_data(self, data: str) -> None:
        if self._in_title and len(self._title or "") < 1000:
            self._title = (self._title or "") + data
        elif not self._hidden:
            self._text.append(data)
            self._size += len(data)
            if self._size > 4 * _GOOD and not (self._tables or self._heading):
                self._flush()

    def end(self) -> None:
        """The page is over, whatever is still open."""
        self._end_heading()
        self._end_pre()
        while self._tables:
            self._end_table()
        self._flush()
        self._give_title()

    def _start(self, tag: str) -> None:
        if tag in _HEADINGS and not self._tables:
            self._end_heading()
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag == "br":
            self._text.append("\n" if self._pre else " \n")
        elif tag == "pre" and not self._tables:
            if not self._pre:
                self._flush()
            self._pre = 1
        elif tag in ("table", "tr", "td", "th"):
            self._start_table(tag)
        elif tag == "img":
            pass
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._break()
            self._start_list(tag)

    def _start_list(self, tag: str) -> None:
        if tag in ("ul", "menu", "ol") and len(self._lists) < 20:
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li" and not self._tables:
            depth = max(0, len(self._lists) - 1)
            count = self._lists[-1] if self._lists else None
            if count is not None:
                self._lists[-1] = count + 1
            self._text.append("  " * depth + ("- " if count is None else f"{count + 1}. "))

    def _start_table(self, tag: str) -> None:
        if tag == "table":
            if not self._tables:
                self._end_heading()
                self._flush()
            self._tables += 1
        elif self._tables == 1 and tag == "tr":
            self._end_cell()
            self._rows.append([])
        elif self._tables == 1:
            self._end_cell()
            if not self._rows:
                self._rows.append([])
            if len(self._rows[-1]) < _MOST_CELLS:
                self._rows[-1].append("")
        else:
            self._text.append(" ")

    def _end_cell(self) -> None:
        cell = _inline("".join(self._text)).replace("\n", " ").strip()
        self._text, self._size = [], 0
        if not cell:
            return
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] = f"{self._rows[-1][-1]} {cell}".strip()
        else:  # a caption
            self._paragraphs.append(cell)
        self._rows_size += len(cell)
        if self._rows_size > 4 * _GOOD:
            self._give_rows()

    def _end_table(self) -> None:
        if not self._tables:
            return
        self._tables -= 1
        if self._tables:
            self._text.append(" ")
            return
        self._end_cell()
        self._give_rows()
        self._header = ""

    def _give_rows(self) -> None:
        if self._paragraphs:
            self._emit("\n\n".join(self._paragraphs))
            self._paragraphs = []
        lines = [" | ".join(row) for row in self._rows if any(row)]
        wide = max((len(row) for row in self._rows), default=0) > 1
        if not self._header and wide and len(lines) > 1:
            self._header = lines.pop(0)
        if lines:
            self._give_title()
            self._sink.emit("\n".join(lines), "table" if wide else "text", header=self._header)
        self._rows, self._rows_size = ([[]] if self._tables else []), 0

    def _end_heading(self) -> None:
        if self._heading:
            text = " ".join("".join(self._text).split())
            level, self._heading = self._heading, 0
            self._text, self._size = [], 0
            self._give_title(text if level == 1 else None)
            self._sink.emit(text, "heading", level=level)

    def _end_pre(self) -> None:
        if self._pre:
            self._pre = 0
            text = "".join(self._text).strip("\n")
            self._text, self._size = [], 0
            self._emit(text, code=True)

    def _break(self) -> None:
        """A paragraph ends, unless it is part of a cell, a heading or code."""
        if self._tables or self._heading:
            self._text.append(" ")
        elif self._pre:
            self._text.append("\n")
        else:
            self._close_paragraph()
            if self._size >= _GOOD:
                self._flush()

    def _close_paragraph(self) -> None:
        text = _inline("".join(self._text))
        if text.strip(" -\n"):
            self._paragraphs.append(text)
        elif text.strip():
            self._text = [text]  # the mark of an item whose text comes as a paragraph
            return
        self._text = []

    def _flush(self) -> None:
        if self._pre:
            self._emit("".join(self._text), code=True)
            self._text = []
        else:
            self._close_paragraph()
            self._emit(_joined(self._paragraphs))
            self._paragraphs = []
        self._size = 0

    def _emit(self, text: str, *, code: bool = False) -> None:
        if text.strip():
            self._give_title()
            self._sink.emit(text, "code" if code else "text")

    def _give_title(self, heading: str | None = None) -> None:
        """The title goes before everything else, unless the first heading says the same."""
        title, self._title = " ".join((self._title or "").split()), ""
        if title and not (heading and heading.casefold() in title.casefold()):
            self._sink.emit(title, "heading", level=1)


def _joined(paragraphs: list[str]) -> str:
    """Items of a list follow each other; paragraphs stand apart."""
    text = ""
    for paragraph in paragraphs:
        text += ("\n" if re.match(r" *(?:-|\d+\.) ", paragraph) else "\n\n") * bool(text) + paragraph
    return text


def _inline(text: str) -> str:
    """Runs of spaces as one, a line break where <br> stood; an indent that marks a list's depth is kept."""
    lines = text.split(" \n")
    indent = len(lines[0]) - len(lines[0].lstrip(" ")) if re.match(r" *(?:-|\d+\.) ", lines[0]) else 0
    return " " * indent + "\n".join(_SPACE.sub(" ", line).strip() for line in lines).strip()


def _hides(attrs: list[tuple[str, str | None]]) -> bool:
    for name, value in attrs:
        if name == "hidden" or (name == "aria-hidden" and value == "true"):
            return True
        if name == "style" and value and _HIDING.search(_SPACE.sub("", value[:2000]).lower()):
            return True
    return False
