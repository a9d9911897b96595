"""Reading ``multipart/form-data`` as it comes: one file handed on piece by piece, a few small fields, nothing else.

Starlette's own parser keeps whole files and takes a thousand parts. Here every count and size is bounded, what is not asked for
is refused, and a body that ends before its last boundary is refused too: a client that left has sent no file.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.core.errors import InvalidRequest, UnsupportedMediaType

OVERHEAD: Final = 65_536
"""Bytes that a body may have beside its file: boundaries, headers of parts, fields."""
_MOST_FIELD: Final = 4096
_MOST_PARTS: Final = 16
_MOST_HEADERS: Final = 8
_MOST_HEADER: Final = 4096
_MOST_BOUNDARY: Final = 70
_BROKEN: Final = "The body is not well-formed multipart/form-data."


@dataclass(slots=True)
class _Part:
    disposition: bytes = b""
    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Form:
    """What came. ``filename``: as the client wrote it, never to be used as a path."""

    filename: str
    fields: dict[str, str]


async def receive_form(
    request: Request, take: Callable[[bytes], Awaitable[None]], *, file: str, fields: Collection[str]
) -> Form:
    """Reads the whole body; hands the content of the part ``file`` to ``take`` as it comes.

    Raises UnsupportedMediaType where it is no form, InvalidRequest for whatever is not asked for, is there twice or is missing,
    ClientDisconnect, and what ``take`` raises.
    """
    reader = _Reader(_boundary(request), file, frozenset(fields))
    async for data in request.stream():
        for piece in reader.feed(data):
            await take(piece)
    return reader.end()


class _Reader:
    """Callbacks of the parser. Errors raised in them come out of `feed`."""

    def __init__(self, boundary: bytes, file: str, fields: frozenset[str]) -> None:
        self._file = file
        self._known = fields
        self._part = _Part()
        self._header = bytearray()
        self._value = bytearray()
        self._parts = 0
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_end": self._end,
                },
                max_header_count=_MOST_HEADERS,
                max_header_size=_MOST_HEADER,
            )
        except FormParserError:
            raise InvalidRequest(_BROKEN, field="body") from None

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the file that these bytes hold."""
        if not data:
            return []
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidRequest(_BROKEN, field="body") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> Form:
        if not self._ended:
            raise InvalidRequest("The body ends before its last boundary.", field="body")
        if self._filename is None:
            raise InvalidRequest(f"Send the file as the part `{self._file}`, with a file name.", field=self._file)
        return Form(self._filename, self._fields)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequest(f"The form has more than {_MOST_PARTS} parts.", field="body")
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._part.disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._part.disposition)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest(_BROKEN, field="body")
        part = self._part
        part.name = options[b"name"].decode("utf-8", "replace")
        if part.name == self._file:
            if self._filename is not None:
                raise InvalidRequest(f"Send one `{self._file}` at a time.", field=self._file)
            if b"filename" not in options:
                raise InvalidRequest(f"`{self._file}` has no file name.", field=self._file)
            part.filename = self._filename = options[b"filename"].decode("utf-8", "replace")
        elif part.name not in self._known:
            raise InvalidRequest("The form holds a field that is not known here.", field="body")
        elif part.name in self._fields:
            raise InvalidRequest(f"`{part.name}` is there twice.", field=part.name)
        elif b"filename" in options:
            raise InvalidRequest(f"`{part.name}` takes text, not a file.", field=part.name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.filename is not None:
            self._pieces.append(data[start:end])
            return
        part.data += data[start:end]
        if len(part.data) > _MOST_FIELD:
            raise InvalidRequest(f"`{part.name}` is too long.", field=part.name)

    def _part_ends(self) -> None:
        part = self._part
        if part.filename is not None:
            return
        try:
            self._fields[part.name] = part.data.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"`{part.name}` is not UTF-8.", field=part.name) from None

    def _end(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    values = request.headers.getlist("content-type")
    kind, options = parse_options_header(values[0] if len(values) == 1 else "")
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= _MOST_BOUNDARY:
        raise UnsupportedMediaType("Send the file as `Content-Type: multipart/form-data`, with a boundary.")
    return boundary
