"""The text of a PDF, page by page, through pypdf with its limits lowered. Pages are kept apart, so that a page can be cited."""

from __future__ import annotations

import logging
import re
from typing import Any, BinaryIO, Final

from pypdf import PdfReader, overwrite_configuration
from pypdf.errors import FileNotDecryptedError, LimitReachedError, PyPdfError

from app.memory.workers.parse_sink import Refuse, Sink

_MOST_PAGES: Final = 10_000
_MOST_FAILURES: Final = 200
_UNPACKED: Final = 24_000_000
_HYPHEN: Final = re.compile(r"(?<=[^\W\d_])[-\u2010\u00ad]\n(?=[^\W\d_A-ZÀ-ÖØ-Þ])")
_ITEM: Final = re.compile(r"\s*(?:[-•‣▪◦*–—]|\(?[0-9a-zA-Z]{1,3}[.)])\s")
_STUMBLES: Final = (
    PyPdfError,
    RecursionError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    OSError,
)
"""What pypdf raises over a bad page."""
_CONFIGURATION: Final[dict[str, Any]] = {
    "maximum_declared_stream_length": _UNPACKED,
    "array_based_stream_maximum_output_length": _UNPACKED,
    "zlib_maximum_output_length": _UNPACKED,
    "zlib_maximum_recovery_input_length": 1_000_000,
    "lzw_maximum_output_length": _UNPACKED,
    "run_length_maximum_output_length": _UNPACKED,
    "brotli_maximum_output_length": _UNPACKED,
    "jbig2_maximum_output_length": 1,
    "stream_filters_maximum_length": 4,
    "stream_decoding_work_maximum_length": 3 * _UNPACKED,
    "stream_parsing_work_maximum_count": 500_000,
    "page_tree_maximum_entries": 2 * _MOST_PAGES,
    "page_tree_maximum_page_entries": 40 * _MOST_PAGES,
    "xform_maximum_invocations_per_extraction": 500,
    "jbig2dec_binary": None,  # a program that would be started
    "disable_legacy_handling": True,
}


def read_pdf(file: BinaryIO, sink: Sink) -> None:
    """Pages of text with their numbers. Raises Refuse, and what pypdf raises for a file that it cannot make out."""
    logging.disable(logging.CRITICAL)
    pages = _pages(file)
    empty = failed = 0
    limited = False
    for number, page in enumerate(pages, start=1):
        try:
            text = page.extract_text()
            empty += not text.strip()
            sink.emit(paragraphs(text), page=number)
        except LimitReachedError:
            failed, limited = failed + 1, True
        except _STUMBLES:  # the other pages are read
            failed += 1
        if failed > _MOST_FAILURES or failed == len(pages):
            raise Refuse("unpacked" if limited else "damaged")
        sink.progress(number / len(pages))
    if empty:
        sink.note("pages_without_text", empty, len(pages))
    if failed:
        sink.note("pages_failed", failed, len(pages))


def _pages(file: BinaryIO) -> list[Any]:
    file.seek(0)
    overwrite_configuration(**_CONFIGURATION)
    try:
        reader = PdfReader(file, strict=False)
        if reader.is_encrypted:
            raise Refuse("encrypted")
        pages = list(reader.pages)
    except FileNotDecryptedError as error:
        raise Refuse("encrypted") from error
    except LimitReachedError as error:
        raise Refuse("unpacked") from error
    if len(pages) > _MOST_PAGES:
        raise Refuse("pages")
    return pages


def paragraphs(text: str) -> str:
    """Lines of a page as paragraphs: words cut at a line's end are joined, lines too, but for items and short last lines."""
    lines = _HYPHEN.sub("", text.replace("\r", "\n")).split("\n")
    wide = sorted(len(line) for line in lines if line.strip())
    usual = wide[len(wide) * 3 // 4] if wide else 0
    made: list[str] = []
    current = ""
    for line in map(str.rstrip, lines):
        starts = not line or _ITEM.match(line) is not None
        ends = current.endswith((".", ":", "!", "?", "。")) and len(current.rsplit("\n", 1)[-1]) < 0.8 * usual
        if current and (starts or ends):
            made.append(current)
            current = ""
        current = f"{current}\n{line}" if current else line
    made.append(current)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in made if paragraph.strip())
