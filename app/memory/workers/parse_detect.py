"""Which format a file has, by what is in it; its name only decides between formats of text. And text from bytes."""

from __future__ import annotations

import codecs
import os
import re
import zipfile
from typing import BinaryIO, Final

from app.memory.parsing.blocks import MOST_CHARACTERS, Format
from app.memory.workers.parse_sink import Refuse, Sink

_HEAD: Final = 1 << 16
_MOST_TEXT_BYTES: Final = 4 * MOST_CHARACTERS
_ZIP: Final = b"PK\x03\x04"
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ARCHIVES: Final = (
    b"PK\x05\x06",
    b"PK\x07\x08",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
_BINARY: Final = (
    b"{\\rtf",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"\x7fELF",
    b"MZ\x90",
    b"%!PS",
    b"SQLite format 3",
    b"wOF",
    b"OggS",
)
_HTML: Final = re.compile(
    rb"\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--.{0,4000}?-->\s*){0,4}<(?:!doctype\s+html|html|head|body)[\s>]", re.I | re.S
)
_ENDINGS: Final[dict[str, Format]] = {
    "md": "md",
    "markdown": "md",
    "mdown": "md",
    "mkd": "md",
    "html": "html",
    "htm": "html",
    "xhtml": "html",
    "csv": "csv",
    "tsv": "csv",
}
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHARSET: Final = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_-]{2,32})""", re.I)
_CHARSETS: Final = {
    "windows-1250": "cp1250",
    "iso-8859-2": "iso-8859-2",
    "windows-1251": "cp1251",
    "koi8-r": "koi8-r",
    "windows-1252": "cp1252",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "iso-8859-15": "iso-8859-15",
    "windows-1253": "cp1253",
    "windows-1254": "cp1254",
    "windows-1256": "cp1256",
    "shift_jis": "cp932",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
}
"""Encodings that a page may say it has. UTF-7 and the like are none: they exist to be misread."""
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\n\r\f\x08\x1b")) + b"\x7f"


def detect(file: BinaryIO, name: str) -> Format:
    """The format of a file. Raises Refuse: empty, an archive, encrypted, or nothing that is read here."""
    file.seek(0)
    head = file.read(_HEAD)
    if not head:
        raise Refuse("empty")
    if head.startswith(b"%PDF-") or (b"%PDF-" in head[:1024] and b" obj" in head):  # some have a few bytes before it
        return "pdf"
    if head.startswith(_ZIP):
        return _in_zip(file)
    if head.startswith(_OLE):  # an old Office file, or a new one with a password
        raise Refuse("encrypted" if "EncryptedPackage".encode("utf-16-le") in head + _tail(file) else "archive")
    if head.startswith(_ARCHIVES):
        raise Refuse("archive")
    if head.startswith(_BINARY):
        raise Refuse("unknown")
    encoding = _encoding(head)
    if _HTML.match(head if encoding == "utf-8" else head.decode(encoding, "replace").encode("utf-8", "replace")):
        return "html"
    return _ENDINGS.get(name.rpartition(".")[2].strip().lower(), "txt")


def read_string(file: BinaryIO, sink: Sink, *, html: bool = False) -> str:
    """The whole text of a text file, line ends as ``\\n``. Raises Refuse: too much of it."""
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_TEXT_BYTES:
        raise Refuse("text")
    file.seek(0)
    data = file.read(_MOST_TEXT_BYTES + 1)
    encoding = _encoding(data[:_HEAD])
    for bom, _ in _BOMS:
        if data.startswith(bom):
            data = data[len(bom) :]
            break
    text = _decode(data, encoding, sink, html=html)
    if len(text) > MOST_CHARACTERS:
        raise Refuse("text")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _decode(data: bytes, encoding: str, sink: Sink, *, html: bool) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        pass
    if encoding != "utf-8":
        text = data.decode(encoding, "replace")
        lost = text.count("\ufffd")
        if lost * 10 > len(text):
            raise Refuse("unknown")
        sink.note("characters_lost", lost)
        return text
    said = _CHARSET.search(data[:4096]) if html else None
    known = _CHARSETS.get(said.group(1).decode("ascii").lower()) if said else None
    lossy = data.decode("utf-8", "replace")
    lost = lossy.count("\ufffd")
    if known is None and lost * 200 < len(lossy) and lost < sum(byte > 127 for byte in data[:_HEAD]) / 4:
        sink.note("characters_lost", lost)  # UTF-8 with a slip
        return lossy
    if known is None:
        sink.note("encoding_guessed")
    return data.decode(known or "cp1252", "replace").replace("\ufffd", "" if known is None else "\ufffd")


def _encoding(head: bytes) -> str:
    """UTF-8, or what a byte-order mark or the zeros of UTF-16 tell. Raises Refuse: it is no text."""
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    zeros = head.count(0)
    if zeros:
        pairs = max(1, len(head) // 2)
        even, odd = head[::2].count(0), head[1::2].count(0)
        if odd > 0.4 * pairs and even < 0.05 * pairs:
            return "utf-16-le"
        if even > 0.4 * pairs and odd < 0.05 * pairs:
            return "utf-16-be"
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls * 100 > len(head):
        raise Refuse("unknown")
    return "utf-8"


def _in_zip(file: BinaryIO) -> Format:
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Refuse("damaged") from error
    if "[Content_Types].xml" in names and "word/document.xml" in names:
        return "docx"
    raise Refuse("archive")


def _tail(file: BinaryIO) -> bytes:
    """The rest of a file, as far as its directory may lie."""
    file.seek(0)
    return file.read(8 << 20)
