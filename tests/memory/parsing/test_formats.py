"""What comes out of good documents, format by format, and which format a file has."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import AprendizError
from app.memory.parsing.blocks import Block, Parsed
from app.memory.parsing.parser import Parser
from app.memory.workers.parse_pdf import paragraphs
from tests.memory.parsing import make

Read = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    parser = Parser(tmp_path / "run")

    async def parse(data: bytes | str, name: str) -> Parsed:
        (tmp_path / "file").write_bytes(data.encode() if isinstance(data, str) else data)
        return await parser.parse(tmp_path / "file", name=name)

    return parse


def told(parsed: Parsed) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, block.text) for block in parsed.blocks]


async def test_plain_text_has_headings_and_lines(read: Read) -> None:
    parsed = await read(
        "Guía\r\n====\r\n\r\nUno\r\ndos\r\n\r\nParte\r\n-----\r\ntres\r\n\r\nSEE ALSO\r\n       ls(1)\r\n", "a.txt"
    )
    assert told(parsed) == [
        ("heading", 1, "Guía"),
        ("text", 0, "Uno\ndos"),
        ("heading", 2, "Parte"),
        ("text", 0, "tres"),
        ("heading", 2, "SEE ALSO"),
        ("text", 0, "       ls(1)"),
    ]
    assert [block.place["line"] for block in parsed.blocks] == [1, 4, 7, 9, 11, 12]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfma\xc3\xb1ana", "mañana"),
        ("mañana 数据".encode("utf-16"), "mañana 数据"),
        ("manana word".encode("utf-16-le"), "manana word"),
        ("mañana".encode("utf-32"), "mañana"),
        ("mañana, “así”".encode("cp1252"), "mañana, “así”"),
        (b"a\x00b\x07c \xe2\x80\xaed\xe2\x80\x8be\xf3\xa0\x81\x81f" + b" x" * 200, "abc def" + " x" * 200),
    ],
)
async def test_encodings(read: Read, data: bytes, text: str) -> None:
    parsed = await read(data, "a.txt")
    assert parsed.blocks == (Block(text, place={"line": 1}),)
    assert bool(parsed.notes) == (data[:3] == b"ma\xf1")


async def test_markdown(read: Read) -> None:
    source = (
        "---\ntitle: T\n---\n# One #\ntext\nmore\n\nTwo\n---\n```py\n# not a heading\n  x = 1\n```\n"
        "a | b\n--|--\n1 | 2\n3 | 4\nafter <!-- hidden\nhidden --> it\n~~~\nopen"
    )
    parsed = await read(source, "a.md")
    assert told(parsed) == [
        ("text", 0, "title: T"),
        ("heading", 1, "One"),
        ("text", 0, "text\nmore"),
        ("heading", 2, "Two"),
        ("code", 0, "# not a heading\n  x = 1"),
        ("table", 0, "1 | 2\n3 | 4"),
        ("text", 0, "after\n it"),
        ("code", 0, "open"),
    ] or told(parsed)[6][2].split() == ["after", "it"]
    lines = source.split("\n")
    for block in parsed.blocks:
        assert block.text.split("\n")[0].strip("# ")[:5].strip() in lines[block.place["line"] - 1]
    assert parsed.blocks[5].header == "a | b"


async def test_html(read: Read) -> None:
    parsed = await read(
        "<!DOCTYPE html><html><head><title>A &amp; B</title><style>p{}</style><script>x()</script></head><body>"
        "<nav>Home</nav><h1>Big <i>one</i></h1><p>Text &eacute; with <b>bold</b><br>break<p>Next"
        "<ul><li>one<li>two<ul><li>deep</ul></ul><p hidden>no<p>yes<div style='display: none'>no<div>no</div>no</div>"
        "<!-- no --><pre>a\n  b</pre><table><tr><th>H1<th>H2<tr><td>1<td>2 <b>x</b></table><p aria-hidden=true>no</p>end",
        "a.txt",
    )
    assert parsed.format == "html"
    assert told(parsed) == [
        ("heading", 1, "A & B"),
        ("text", 0, "Home"),
        ("heading", 1, "Big one"),
        ("text", 0, "Text é with bold\nbreak\n\nNext\n- one\n- two\n  - deep\n\nyes"),
        ("code", 0, "a\n  b"),
        ("table", 0, "1 | 2 x"),
        ("text", 0, "end"),
    ]
    assert parsed.blocks[5].header == "H1 | H2"


async def test_a_page_in_another_encoding(read: Read) -> None:
    parsed = await read("<html><meta charset='windows-1251'><p>привет".encode("cp1251"), "a.html")
    assert parsed.blocks[0].text == "привет" and not parsed.notes


async def test_csv(read: Read) -> None:
    parsed = await read('name;age;note\n"Ana; B";33;"two\nlines"\n\nBob;;x;more\n'.encode("utf-8-sig"), "a.csv")
    assert told(parsed) == [("table", 0, "name: Ana; B; age: 33; note: two lines\n\nname: Bob; note: x; column 4: more")]
    assert parsed.blocks[0].place == {"row": 2} and parsed.notes == ("1 rows have another number of cells than the first.",)
    numbers = await read("1,2\n3,4\n", "b.csv")
    assert told(numbers) == [("table", 0, "column 1: 1; column 2: 2\ncolumn 1: 3; column 2: 4")]
    assert told(await read("name\tage\n", "b.tsv")) == [("table", 0, "name; age")]


async def test_pdf(read: Read) -> None:
    parsed = await read(make.pdf([["First page (one).", "It goes on"], [], ["mañana exam-", "ple of two"]]), "x.bin")
    assert parsed.format == "pdf"
    assert [(block.place["page"], block.text) for block in parsed.blocks] == [
        (1, "First page (one). It goes on"),
        (3, "mañana example of two"),
    ]
    assert parsed.notes == ("1 of 3 pages hold no text (scans?).",)


def test_lines_of_a_page_become_paragraphs() -> None:
    page = "A first line that is long enough\nand its second end.\nA new one that follows here now\n"
    page += "• item\n• other-\nwise\nX-\nRay"
    assert paragraphs(page).split("\n\n") == [
        "A first line that is long enough and its second end.",
        "A new one that follows here now",
        "• item",
        "• otherwise X- Ray",
    ]


async def test_docx(read: Read) -> None:
    note = f'<w:footnotes {make.W}><w:footnote w:id="2">{make.paragraph("the note")}</w:footnote></w:footnotes>'
    cell = "<w:tc>{}</w:tc>".format
    table = "".join(f"<w:tr>{''.join(cell(make.paragraph(text)) for text in row)}</w:tr>" for row in (("A", "B"), ("1", "2")))
    body = (
        make.paragraph("Título", "Ttulo1")
        + "<w:p><w:r><w:t>One</w:t><w:tab/><w:t>two</w:t></w:r><w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r>"
        + '<w:r><w:footnoteReference w:id="2"/></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>'
        + make.paragraph("Sub", "Mine")
        + make.paragraph("a", inside='<w:numPr><w:ilvl w:val="0"/></w:numPr>')
        + make.paragraph("b", inside='<w:numPr><w:ilvl w:val="1"/></w:numPr>')
        + f"<w:tbl>{table}</w:tbl>"
        + make.paragraph("end")
    )
    parsed = await read(make.docx(body, styles=make.STYLES, more={"word/footnotes.xml": note}), "a")
    assert parsed.format == "docx"
    assert told(parsed) == [
        ("heading", 1, "Título"),
        ("text", 0, "One two[2]\n\n[2] the note"),
        ("heading", 2, "Sub"),
        ("text", 0, "- a\n  - b"),
        ("table", 0, "1 | 2"),
        ("text", 0, "end"),
    ]
    assert parsed.blocks[4].header == "A | B"


def locked_zip() -> bytes:
    data = bytearray(make.docx("x"))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + at] |= 1
            place = data.find(mark, place + 1)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "name", "kind", "words"),
    [
        (b"", "a.txt", "InvalidRequest", "no text"),
        (b" \n\n \n", "a.txt", "InvalidRequest", "no text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "a.txt", "UnsupportedMediaType", "no format"),
        (b"MZ\x90\0" + b"\0" * 99, "a.pdf", "UnsupportedMediaType", "no format"),
        (b"{\\rtf1 hello}", "a.docx", "UnsupportedMediaType", "no format"),
        (make.zipped({"a.txt": "x"}), "a.docx", "UnsupportedMediaType", "archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "a.doc", "UnsupportedMediaType", "archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "a.docx", "InvalidRequest", "encrypted"),
        (locked_zip(), "a.docx", "InvalidRequest", "encrypted"),
        (
            make.pdf([["x"]], trailer=b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (x) /U (x) /P -4 >> "),
            "a.pdf",
            "InvalidRequest",
            "encrypted",
        ),
        (make.pdf([[], []]), "a.pdf", "InvalidRequest", "No page"),
        (make.docx("")[:-40], "a.docx", "InvalidRequest", "damaged"),
        (b"%PDF-1.4\nnothing", "a.pdf", "InvalidRequest", "damaged"),
    ],
)
async def test_what_is_refused(read: Read, data: bytes, name: str, kind: str, words: str) -> None:
    with pytest.raises(AprendizError, match=words) as caught:
        await read(data, name)
    assert type(caught.value).__name__ == kind


async def test_the_ending_decides_only_between_texts(read: Read) -> None:
    assert (await read("# x", "a.pdf")).format == "txt"
    assert (await read("a,b\n1,2", "../../a.CSV")).format == "csv"
    assert (await read("This page is about %PDF-1.4 files.", "a.md")).format == "md"


def test_make_makes_what_the_library_reads() -> None:
    import pypdf

    assert len(pypdf.PdfReader(io.BytesIO(make.pdf([["x"]] * 3))).pages) == 3
