"""The child that reads one document: limits itself, tells the format by what is in the file, sends blocks of text.

Protocol: stdin holds one line of JSON (``fd``: the open file, ``name``, ``cpu_s``, ``memory_mb``, ``parent_pid``) and then
stays open; its end means that the parent is gone. stdout: the frames of `app.memory.parsing.frames`. Nothing a document says
makes it open a file or a connection: no reader here resolves an address or an external entity.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

from app.memory.parsing.blocks import Format
from app.memory.parsing.frames import Code
from app.memory.workers.parse_detect import detect
from app.memory.workers.parse_limits import die_with_parent, limit
from app.memory.workers.parse_sink import Refuse, Sink

_DEPTH: Final = 2000
"""Calls within each other: hostile nesting ends as RecursionError long before the stack does."""


def main() -> None:
    """Reads one document and exits."""
    config = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not config:
        os._exit(0)
    die_with_parent(int(config["parent_pid"]))
    limit(memory_mb=int(config["memory_mb"]), cpu_s=int(config["cpu_s"]))
    sys.setrecursionlimit(_DEPTH)
    report = os.dup(1)
    os.dup2(2, 1)  # what a library prints does not get between the frames
    sink = Sink(lambda data: _write(report, data))
    with os.fdopen(int(config["fd"]), "rb") as file:
        code = _read(file, str(config["name"]), sink)
    if code is not None:
        sink.refuse(code)
    os._exit(0)


def _read(file: BinaryIO, name: str, sink: Sink) -> Code | None:
    """Sends the document; gives why it could not."""
    try:
        form = detect(file, name)
        _reader(form)(file, sink)
        sink.done(form)
    except Refuse as refuse:
        return refuse.code
    except MemoryError:
        gc.collect()
        return "unpacked"
    except RecursionError:
        return "parts"
    except ImportError:
        return "missing"
    except Exception:  # noqa: BLE001  # whatever a library stumbles over is the document's fault: its owner hears that it is damaged
        return "damaged"
    return None


def _reader(form: Format) -> Callable[[BinaryIO, Sink], None]:
    """The reader of a format. Imported when it is needed: a library costs time and memory."""
    if form == "pdf":
        from app.memory.workers.parse_pdf import read_pdf

        return read_pdf
    if form == "docx":
        from app.memory.workers.parse_docx import read_docx

        return read_docx
    if form == "html":
        from app.memory.workers.parse_html import read_html

        return read_html
    if form == "csv":
        from app.memory.workers.parse_csv import read_csv

        return read_csv
    from app.memory.workers.parse_text import read_markdown, read_text

    return read_markdown if form == "md" else read_text


def _write(report: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(report, view) :]


if __name__ == "__main__":
    main()
