"""Test B12 for files and collections: no name of a client becomes part of a path, and none deceives a reader."""

# ruff: noqa: ASYNC240  # files of a few bytes

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidRequest
from app.memory.parsing.names import check_collection, display_name
from app.memory.parsing.parser import Parser

BASES = (
    "../x",
    "..\\x",
    "/etc/passwd",
    "C:\\x",
    "\\\\host\\share",
    "~/x",
    "%2e%2e%2fx",
    "..%c0%afx",
    "/proc/self/environ",
    "....//x",
)
ENDS = ("", "\0", "\0.txt", "\n", "\r\nX: y", "/", ".", " ", "/..", "\u202etxt.exe")
DEVICES = (
    "CON",
    "nul",
    "COM1",
    "AUX.txt",
    "/dev/zero",
    "file:///x",
    "http://x",
    "sha256:../x",
    "$(id)",
    "`id`",
    "{{x}}",
    "-rf",
    "*",
    "",
)
LONG = (
    "a" * 300,
    "../" * 100,
    "é" * 300,
    "\u200b",
    "\U000e0041\U000e0042",
    "\ud800",
    "\x1b[31mred",
    "<b>",
    "'; --",
    "x" * 65,
    "A",
    "á",
    "ａ",
)
HOSTILE = [base + end for base in BASES for end in ENDS] + list(DEVICES) + list(LONG)


def test_there_are_enough() -> None:
    assert len(set(HOSTILE)) >= 100


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "nul"])
def test_a_hostile_name_is_no_collection(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_collection(name)
    assert caught.value.field == "collection"


@pytest.mark.parametrize("name", ["a", "0", "notes", "my-notes_2.old", "a" * 64, "nul"])
def test_these_are_collections(name: str) -> None:
    assert check_collection(name) == name


@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=400)))
def test_a_shown_name_is_one_line_of_visible_text(name: str) -> None:
    shown = display_name(name)
    assert 1 <= len(shown) <= 255 and shown == shown.strip() and shown.strip(". ")
    assert not re.search(r"[/\\\n\r\0]", shown)
    assert not any(unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for char in shown)
    shown.encode()


def test_the_end_of_a_name_is_kept() -> None:
    assert display_name("Informe año 2026.pdf") == "Informe año 2026.pdf"
    assert display_name("C:\\Users\\x\\report.docx") == "report.docx"
    assert display_name("a" * 400 + ".pdf").endswith("a.pdf")
    assert display_name("///") == display_name("..") == "document"


async def test_no_name_makes_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("some text")
    parser = Parser(tmp_path / "run")
    for name in HOSTILE[::9]:
        parsed = await parser.parse(tmp_path / "file", name=name)
        assert parsed.blocks[0].text == "some text"
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == ["file", "run"]
