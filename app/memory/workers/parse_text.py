"""Plain text and Markdown: lines to blocks. Headings, fenced code and tables are told; the rest stays as it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from app.memory.workers.parse_detect import read_string
from app.memory.workers.parse_sink import Lines, Sink

_OVERSTRUCK: Final = re.compile(".\x08")
_UNDERLINE: Final = re.compile(r"([=\-~^\"'#*+`.:_])\1{2,199}\s*")
_CAPITALS: Final = re.compile(r"[A-ZÀ-ÖØ-Þ0-9][A-ZÀ-ÖØ-Þ0-9 ,/()&._-]{1,59}")
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_TABLE_RULE: Final = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*){0,200}\|?\s*")
_COMMENT_START: Final = "<!--"
_COMMENT_END: Final = "-->"
_LONGEST_LINE: Final = 4000
"""Longer lines are words, never marks."""
_PROGRESS_LINES: Final = 5000


def read_text(file: BinaryIO, sink: Sink) -> None:
    """Text as it is; underlined titles, and capitals above indented lines as in manual pages, are headings. Raises Refuse."""
    text = read_string(file, sink)
    if "\x08" in text:
        text = _OVERSTRUCK.sub("", text)
    gathered = Lines(sink)
    styles: list[str] = []
    before, held = "", None  # a line is held back until the next one tells whether it is a heading
    for number, line in _numbered(text, sink):
        if held is not None:
            level = _level(before, held[1], line, styles)
            if level:
                gathered.flush()
                sink.emit(held[1], "heading", level=level, line=held[0])
                underlined = _UNDERLINE.fullmatch(line) is not None
                before, held = ("", None) if underlined else (held[1], (number, line))
                continue
            gathered.add(held[1], held[0])
            before = held[1]
        held = (number, line)
    if held is not None:
        gathered.add(held[1], held[0])
    gathered.flush()


def _level(before: str, line: str, after: str, styles: list[str]) -> int:
    """The level of the heading that ``line`` is between two others; 0: it is none."""
    title = line.strip()
    if not title or len(title) > 120 or len(after) > _LONGEST_LINE:
        return 0
    mark = _UNDERLINE.fullmatch(after)
    if mark is not None and not before.strip(" =-~^\"'#*+`.:_") and len(after.rstrip()) >= 0.6 * len(title):
        if not any(char.isalnum() for char in title):
            return 0
        if mark.group(1) not in styles:
            styles.append(mark.group(1))
        return min(styles.index(mark.group(1)) + 1, 6)
    if not before.strip() and not line[0].isspace() and after[:2].isspace() and after.strip() and _CAPITALS.fullmatch(title):
        return 2
    return 0


def read_markdown(file: BinaryIO, sink: Sink) -> None:
    """Markdown with front matter, headings of both kinds, fences, pipe tables; comments are left out. Raises Refuse."""
    _Markdown(sink).read(_without_comments(read_string(file, sink)))


class _Markdown:
    """The lines of a Markdown file in order; one line is held back, for the next may make a heading or a table of it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._gathered = Lines(sink)
        self._rows = Lines(sink, breaks=False)
        self._held: tuple[int, str] | None = None
        self._fence = ""
        self._fence_indent = 0
        self._header = ""

    def read(self, text: str) -> None:
        front = _front_matter(text)
        for number, line in _numbered(text, self._sink):
            if number <= front:
                if number not in (1, front):
                    self._gathered.add(line, number)
                elif number == front:
                    self._gathered.flush()
            elif self._fence:
                self._in_fence(number, line)
            elif self._header:
                self._in_table(number, line)
            else:
                self._plain(number, line)
        self._release()
        self._gathered.flush("code" if self._fence else "text")
        self._rows.flush("table", header=self._header)

    def _in_fence(self, number: int, line: str) -> None:
        bare = line.strip()
        if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
            self._fence = ""
            self._gathered.flush("code")
        else:
            indent = len(line) - len(line.lstrip(" "))
            self._gathered.add(line[min(indent, self._fence_indent) :], number)

    def _in_table(self, number: int, line: str) -> None:
        if "|" in line:
            self._rows.add(line.strip(), number)
            return
        self._rows.flush("table", header=self._header)
        self._header = ""
        self._plain(number, line)

    def _plain(self, number: int, line: str) -> None:
        short = len(line) <= _LONGEST_LINE
        fence = _FENCE.match(line) if short else None
        heading = _ATX.fullmatch(line) if short else None
        if fence is not None and "`" not in line[fence.end() :]:
            self._release()
            self._gathered.flush()
            self._fence, self._fence_indent = fence.group(1), fence.start(1)
        elif heading is not None:
            self._release()
            self._gathered.flush()
            self._sink.emit(heading.group(2) or "", "heading", level=len(heading.group(1)), line=number)
        elif not (short and self._completes(line)):
            self._release()
            self._held = (number, line)

    def _completes(self, line: str) -> bool:
        """Whether this line makes a heading, or a table's first row, of the one held back."""
        if self._held is None or not self._held[1].strip() or len(self._held[1]) > _LONGEST_LINE:
            return False
        number, held = self._held
        bare = line.strip()
        if "|" in held and ("|" in line or ":" in line) and _TABLE_RULE.fullmatch(line):
            self._gathered.flush()
            self._header, self._held = held.strip(), None
            return True
        if bare and not bare.strip("=-") and len(set(bare)) == 1 and len(line) - len(line.lstrip()) < 4:
            if bare == "-" or held.lstrip().startswith(("- ", "* ", "> ", "|")):
                return False
            self._gathered.flush()
            self._sink.emit(held, "heading", level=1 if bare[0] == "=" else 2, line=number)
            self._held = None
            return True
        return False

    def _release(self) -> None:
        if self._held is not None:
            self._gathered.add(self._held[1], self._held[0])
            self._held = None


def _front_matter(text: str) -> int:
    """The number of the line that ends the front matter; 0: there is none."""
    if not text.startswith("---\n"):
        return 0
    at = text.find("\n---\n", 3, 16_384)
    return text.count("\n", 0, at) + 2 if at > 0 else 0


def _without_comments(text: str) -> str:
    """Without HTML comments, which no reader sees; their line ends stay, so that lines keep their numbers."""
    if _COMMENT_START not in text:
        return text
    kept: list[str] = []
    at = 0
    while (start := text.find(_COMMENT_START, at)) >= 0:
        end = text.find(_COMMENT_END, start + len(_COMMENT_START))
        if end < 0 or _in_code(text, start):
            kept.append(text[at : start + len(_COMMENT_START)])
            at = start + len(_COMMENT_START)
            if end < 0:
                break
            continue
        kept += [text[at:start], "\n" * text.count("\n", start, end)]
        at = end + len(_COMMENT_END)
    return "".join([*kept, text[at:]])


def _in_code(text: str, at: int) -> bool:
    """Whether a place lies in a line of code: behind a backtick, or indented like code."""
    start = text.rfind("\n", max(0, at - _LONGEST_LINE), at) + 1
    line = text[start:at]
    return line.count("`") % 2 == 1 or line.startswith(("    ", "\t"))


def _numbered(text: str, sink: Sink) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1, one at a time: a list of millions of lines would not fit."""
    at, number = 0, 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        number += 1
        yield number, text[at:end]
        at = end + 1
        if number % _PROGRESS_LINES == 0:
            sink.progress(at / len(text))
