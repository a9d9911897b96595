"""The corpus of test B23: documents that are small on disk and huge, endless or broken when they are read."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.memory.parsing import make

GIB: Final = 1 << 30
Writer = Callable[[Path], None]


def of(data: Callable[[], bytes]) -> Writer:
    """What writes these bytes."""
    return lambda path: _whole(path, data())


def _whole(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def deflated_zeros(size: int) -> bytes:
    """A raw deflate stream of ``size`` spaces, made in pieces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = b" " * (1 << 20)
    return b"".join([packer.compress(piece) for _ in range(size >> 20)]) + packer.flush()


def zip_of(packed: bytes, size: int, names: list[str], *, overlapping: bool = False, claimed: int | None = None) -> bytes:
    """An archive whose members share or repeat one deflate stream; their sizes are claimed, not computed."""
    out, directory = io.BytesIO(), io.BytesIO()
    place = 0
    says = (size if claimed is None else claimed) & 0xFFFFFFFF
    for index, name in enumerate(names):
        encoded = name.encode()
        if index == 0 or not overlapping:
            place = out.tell()
            out.write(struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(packed), says, len(encoded), 0))
            out.write(encoded + packed)
        directory.write(
            struct.pack(
                "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(packed), says, len(encoded), 0, 0, 0, 0, 0, place
            )
            + encoded
        )
    start, listed = out.tell(), directory.getvalue()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(names) & 0xFFFF, len(names) & 0xFFFF, len(listed), start, 0)
    return out.getvalue() + listed + end


def docx_bomb(*, gib: int = 1, overlapping: bool = False, claimed: int | None = None) -> bytes:
    """A Word document whose main part unpacks to ``gib`` GiB."""
    names = ["word/document.xml", "[Content_Types].xml", "word/styles.xml"]
    if overlapping:
        names += [f"word/media/{index}.xml" for index in range(200)]
    return zip_of(deflated_zeros(gib * GIB >> (0 if gib else 6)), gib * GIB, names, overlapping=overlapping, claimed=claimed)


def xml_docx(document: str, **parts: str) -> bytes:
    """A Word document with this main part as it stands."""
    members = {f"word/{name}.xml": text for name, text in parts.items()}
    return make.zipped({"[Content_Types].xml": make.CONTENT_TYPES, "word/document.xml": document, **members})


def laughs() -> bytes:
    """Entities of entities."""
    entities = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
    return xml_docx(
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY l0 "lol">{entities}]>'
        f"<w:document {make.W}><w:body>{make.paragraph('&l9;')}</w:body></w:document>"
    )


def external(address: str) -> bytes:
    """An entity that lies elsewhere."""
    return xml_docx(
        f'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY x SYSTEM "{address}">]>'
        f"<w:document {make.W}><w:body>{make.paragraph('secret: &x;')}</w:body></w:document>"
    )


def nested_docx(depth: int) -> bytes:
    """Tables in tables, or deeper than a stack."""
    return xml_docx(f"<w:document {make.W}>{'<w:tbl>' * depth}{'</w:tbl>' * depth}</w:document>")


def entries(count: int) -> bytes:
    """A Word document with so many members."""
    members: dict[str, bytes | str] = {"[Content_Types].xml": "x", "word/document.xml": "<x/>"}
    return make.zipped({**members, **{f"word/m{index}": b"" for index in range(count)}})


def flate_pdf(size: int, *, twice: bool = False) -> bytes:
    """A page whose content unpacks to ``size`` bytes, with one filter or two."""
    packer = zlib.compressobj(9)
    body = b"".join([packer.compress(b" " * (1 << 20)) for _ in range(size >> 20)]) + packer.flush()
    filters = b"/FlateDecode"
    if twice:
        body, filters = zlib.compress(body, 9), b"[/FlateDecode /FlateDecode]"
    return make.pdf([], contents=[b"<< /Length %d /Filter %s >>\nstream\n%s\nendstream" % (len(body), filters, body)])


def cyclic_tree() -> bytes:
    """Pages that are their own children."""
    return make.pdf_of(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 9 /Kids [3 0 R 2 0 R] /Parent 3 0 R >>",
            3: b"<< /Type /Pages /Count 9 /Kids [2 0 R 3 0 R] /Parent 2 0 R >>",
        }
    )


def cyclic_objects() -> bytes:
    """Objects that refer to themselves, and a form that draws itself."""
    form = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >> "
    return make.pdf_of(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
            4: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 5 0 R "
            b"/Resources << /XObject << /X 6 0 R >> /Font 7 0 R >> >>",
            5: make.stream(b"/X Do " * 2000),
            6: make.stream(b"/X Do /X Do", form),
            7: b"7 0 R",
        }
    )


def many_pages(count: int) -> bytes:
    """One page, ``count`` times."""
    return make.pdf_of(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count %d /Kids [%s] >>" % (count, b"3 0 R " * count),
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
            4: make.stream(b"BT (x) Tj ET"),
        }
    )


def many_operators(count: int) -> bytes:
    """A page with so many operators that show text."""
    return make.pdf([], contents=[make.stream(b"BT /F1 9 Tf " + b"(a) Tj " * count + b"ET")])


def deep_pdf(depth: int) -> bytes:
    """Arrays in arrays, in an object and on a page."""
    deep = b"[" * depth + b"]" * depth
    return make.pdf([], contents=[make.stream(b"BT " + deep + b" TJ ET")], trailer=b"/X " + deep)


def huge_xref() -> bytes:
    """A table that claims two thousand million objects."""
    body = make.pdf([["text"]])
    at = body.rindex(b"xref\n0 ", 0, body.rindex(b"trailer"))
    return body[:at] + b"xref\n0 2000000000\n" + body[body.index(b"\n", at + 5) + 1 :]


def xref_stream() -> bytes:
    """The same as a stream of a few bytes that says it has a thousand million entries."""
    body = b"%PDF-1.7\n"
    claims = b"/W [1 2 1] /Index [0 1000000000] /Size 1000000000"
    obj = b"1 0 obj\n<< /Type /XRef %s /Root 1 0 R /Length 4 >>\nstream\nabcd\nendstream\nendobj\n" % claims
    return body + obj + b"startxref\n9\n%%EOF"


def object_stream() -> bytes:
    """An object stream that claims to hold a million objects and extends itself."""
    return make.pdf_of(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 1 /Kids [8 0 R] >>",
            7: make.stream(b"8 0 " * 200_000, b"/Type /ObjStm /N 1000000 /First 800000 /Extends 7 0 R "),
        }
    )


def one_line(size: int) -> Writer:
    """A file of ``size`` bytes without a line end, most of it a hole."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(b"name,age\n" + b"x" * 70_000)
            file.truncate(size)

    return write


def honest() -> dict[str, bytes]:
    """One good document of each format, by file name."""
    body = make.paragraph("Manual", "Ttulo1") + make.paragraph("El gato duerme. The cat sleeps.") * 20
    return {
        "a.txt": ("Título\n======\n\n" + "Una línea de texto. Another line of text.\n" * 40).encode(),
        "a.md": ("# Title\n\n" + "Text *here*.\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" * 10).encode(),
        "a.html": (
            "<!doctype html><title>T</title><h1>H</h1>" + "<p>Some <b>text</b>.<ul><li>x</ul><table><tr><td>1<td>2</table>" * 20
        ).encode(),
        "a.pdf": make.pdf([["A page of text.", "With two lines."]] * 5),
        "a.docx": make.docx(body, styles=make.STYLES),
        "a.csv": b"name,age,city\n" + b'"Ana, B",33,Lima\n' * 50,
    }


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Good documents with bytes changed, cut out, doubled and moved: ``count`` of each format."""
    chance = random.Random(seed)
    for name, data in honest().items():
        for _ in range(count):
            yield name, _mutate(data, chance)


def _mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 12)):
        at, length = chance.randrange(len(changed)), chance.randint(1, 64)
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and len(changed) > 100:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * chance.randint(1, 4)
        elif kind == 3:
            changed[at : at + 8] = chance.choice(
                [b"\xff" * 8, b"\0" * 8, b"99999999", b"-0000001", b"<!DOCTYP", b"PK\x03\x04PK\x03\x04"]
            )
        else:
            other = chance.randrange(len(changed))
            changed[at : at + length], changed[other : other + length] = (
                changed[other : other + length],
                changed[at : at + length],
            )
    return bytes(changed)


def corpus() -> dict[str, tuple[str, Writer]]:
    """Case by name: the file's name, and what writes it. Those of `QUICK` take little time to make and to refuse."""
    tag = b"<div>" * 1_000_000
    return {
        "zip bomb": ("b.docx", of(lambda: docx_bomb(gib=4 - 1))),
        "zip bomb that lies": ("b.docx", of(lambda: docx_bomb(gib=1, claimed=1000))),
        "small zip bomb": (
            "b.docx",
            of(lambda: zip_of(deflated_zeros(80 << 20), 80 << 20, ["word/document.xml", "[Content_Types].xml"])),
        ),
        "overlapping members": (
            "b.docx",
            of(
                lambda: zip_of(
                    deflated_zeros(1 << 20), 1 << 20, ["word/document.xml", "[Content_Types].xml", "x"], overlapping=True
                )
            ),
        ),
        "nested zip": ("b.docx", of(lambda: make.zipped({"a.zip": make.zipped({"b.zip": make.zipped({"c": b"0" * 1000})})}))),
        "100k entries": ("b.docx", of(lambda: entries(100_000))),
        "5k entries": ("b.docx", of(lambda: entries(5000))),
        "same name twice": (
            "b.docx",
            of(
                lambda: zip_of(
                    deflated_zeros(1 << 20), 1 << 20, ["word/document.xml", "[Content_Types].xml", "word/document.xml"]
                )
            ),
        ),
        "billion laughs": ("b.docx", of(laughs)),
        "external entity": ("b.docx", of(lambda: external("file:///etc/passwd"))),
        "external address": ("b.docx", of(lambda: external("http://127.0.0.1:9/x"))),
        "deep xml": ("b.docx", of(lambda: nested_docx(300_000))),
        "broken xml": ("b.docx", of(lambda: xml_docx(f"<w:document {make.W}><w:body><w:p>"))),
        "huge attribute": ("b.docx", of(lambda: xml_docx(f'<w:document {make.W} x="{"a" * 50_000_000}"/>'))),
        "huge paragraph": ("b.docx", of(lambda: make.docx(make.paragraph("a " * 10_000_000)))),
        "flate bomb": ("b.pdf", of(lambda: flate_pdf(GIB))),
        "double flate bomb": ("b.pdf", of(lambda: flate_pdf(GIB, twice=True))),
        "cyclic pages": ("b.pdf", of(cyclic_tree)),
        "cyclic objects": ("b.pdf", of(cyclic_objects)),
        "200k pages": ("b.pdf", of(lambda: many_pages(200_000))),
        "9k same pages": ("b.pdf", of(lambda: many_pages(9000))),
        "1M operators": ("b.pdf", of(lambda: many_operators(1_000_000))),
        "deep arrays": ("b.pdf", of(lambda: deep_pdf(100_000))),
        "huge xref": ("b.pdf", of(huge_xref)),
        "xref stream": ("b.pdf", of(xref_stream)),
        "object stream": ("b.pdf", of(object_stream)),
        "only a header": ("b.pdf", of(lambda: b"%PDF-1.7\n" + b"9" * 1_000_000)),
        "1 GB line": ("b.csv", one_line(GIB)),
        "30 MB line": ("b.csv", of(lambda: b"a,b\n" + b"x" * 30_000_000)),
        "open quote": ("b.csv", of(lambda: b'a,b\n"' + b"x,y\n" * 3_000_000)),
        "30 MB of commas": ("b.csv", of(lambda: b"," * 30_000_000)),
        "30 MB of rows": ("b.csv", of(lambda: b"a,b\n" + b"1,2\n" * 7_500_000)),
        "30 MB of short lines": ("b.txt", of(lambda: b"a\n\n" * 10_000_000)),
        "30 MB of headings": ("b.md", of(lambda: b"# a\n" * 7_500_000)),
        "10 MB of marks": ("b.md", of(lambda: b"<!--`" * 2_000_000)),
        "10 MB of pipes": ("b.md", of(lambda: (b"|" * 4000 + b"\n" + b"|-" * 2000 + b"\n") * 800)),
        "1M nested tags": ("b.html", of(lambda: b"<html>" + tag + b"x" + b"</div>" * 1_000_000)),
        "1M closing tags": ("b.html", of(lambda: b"<html>" + b"<p>x</b>" * 1_000_000)),
        "unclosed everything": ("b.html", of(lambda: b"<html>" + b"<table><tr><td><h1><pre><ul><li>x" * 100_000)),
        "unclosed comment": ("b.html", of(lambda: b"<html>x" + b"<!--" * 1_000_000)),
        "unclosed attribute": ("b.html", of(lambda: b"<html>x<a href='" + b"<a b='" * 500_000)),
        "10 MB of entities": ("b.html", of(lambda: b"<html>" + b"&NotEqualTilde;&#x110000;&#0;" * 300_000)),
        "utf-7": ("b.html", of(lambda: b"<html><meta charset=utf-7><body>+ADw-script+AD4-alert(1)+ADw-/script+AD4-")),
        "overlong utf-8": ("b.txt", of(lambda: b"\xc0\xae\xc0\xae/\xe0\x80\xaf\xf8\x88\x80\x80\x80 etc" * 100)),
        "surrogates": ("b.txt", of(lambda: b"\xff\xfe" + b"\x00\xd8" * 10_000)),
        "zeros": ("b.txt", of(lambda: b"\0" * 1_000_000)),
        "noise": ("b.txt", of(lambda: random.Random(3).randbytes(1_000_000))),
        "gzip": ("b.txt", of(lambda: b"\x1f\x8b\x08" + b"\0" * 100)),
        "spaces": ("b.txt", of(lambda: b" \n" * 1_000_000)),
        "nothing": ("b.txt", of(lambda: b"")),
    }


QUICK: Final = (
    "small zip bomb",
    "overlapping members",
    "nested zip",
    "5k entries",
    "same name twice",
    "billion laughs",
    "external entity",
    "external address",
    "deep xml",
    "broken xml",
    "cyclic pages",
    "cyclic objects",
    "deep arrays",
    "huge xref",
    "xref stream",
    "only a header",
    "1 GB line",
    "utf-7",
    "overlong utf-8",
    "surrogates",
    "zeros",
    "noise",
    "gzip",
    "spaces",
    "nothing",
)
