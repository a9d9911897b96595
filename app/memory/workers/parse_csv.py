"""Tables as text: each row is one line ``column: value; …``, so that a row speaks for itself wherever it is cut."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from app.memory.workers.parse_detect import read_string
from app.memory.workers.parse_sink import Lines, Refuse, Sink

_DELIMITERS: Final = ",;\t|"
_SAMPLE_LINES: Final = 20
_SAMPLE: Final = 1 << 16
_MOST_CELL: Final = 100_000
_MOST_NAME: Final = 80
_PROGRESS_ROWS: Final = 2000


def read_csv(file: BinaryIO, sink: Sink) -> None:
    """Rows of a CSV or TSV file. The first row names the columns if it looks like names. Raises Refuse."""
    text = read_string(file, sink)
    csv.field_size_limit(_MOST_CELL)
    gathered = Lines(sink, "row", breaks=False)
    columns: list[str] | None = None
    width = ragged = number = 0
    try:
        for number, row in enumerate(csv.reader(_lines(text, sink), delimiter=_delimiter(text[:_SAMPLE])), start=1):
            if columns is None:
                columns, width = _columns(row), len(row)
                if any(columns):
                    continue
            if len(row) != width and any(row):
                ragged += 1
            gathered.add(_line(row, columns), number)
    except csv.Error as error:
        raise Refuse("cell" if "field limit" in str(error) else "damaged") from error
    gathered.flush("table")
    if columns and number == 1:  # names and nothing else are the text
        sink.emit("; ".join(filter(None, columns)), "table", row=1)
    if ragged:
        sink.note("rows_ragged", ragged)


def _lines(text: str, sink: Sink) -> Iterator[str]:
    """Lines with their ends, as `csv` wants them; NUL, which no cell means, left out."""
    at, count = 0, 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end + 1
        yield text[at:end].replace("\0", "")
        at, count = end, count + 1
        if count % _PROGRESS_ROWS == 0:
            sink.progress(at / len(text))


def _delimiter(sample: str) -> str:
    """The character that stands as often in each of the first lines, outside quotes; a comma where none does."""
    lines = [line for line in sample.split("\n")[:_SAMPLE_LINES] if line.strip()]
    if len(lines) > 1 and len(sample) == _SAMPLE:
        lines.pop()  # may be cut
    bare = ["".join(line.split('"')[::2]) for line in lines]
    best, most = ",", 0.0
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in bare]
        usual = max(set(counts), key=counts.count, default=0)
        score = usual and counts.count(usual) / len(counts) + min(usual, 20) / 100
        if score > most:
            best, most = delimiter, score
    return best


def _columns(first: Sequence[str]) -> list[str]:
    """Names from the first row, or empty ones where it looks like data: numbers, repetitions, holes, long text."""
    names = [" ".join(cell.split()) for cell in first]
    told = [name for name in names if name]
    if not told or len(set(told)) < len(told) or len(told) < 0.5 * len(names):
        return []
    if any(len(name) > _MOST_NAME or _number(name) for name in told):
        return []
    return names


def _line(row: Sequence[str], columns: Sequence[str] | None) -> str:
    cells = []
    for index, cell in enumerate(row):
        value = " ".join(cell.split())
        if value:
            name = columns[index] if columns and index < len(columns) else ""
            cells.append(f"{name or f'column {index + 1}'}: {value}")
    return "; ".join(cells)


def _number(text: str) -> bool:
    return text[:1].isdigit() or text[:2].lstrip("-+.,").isdigit()
