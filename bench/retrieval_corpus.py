"""Real text with questions whose answers are known, in English and Spanish, out of Debian's own documentation packages.

Two sets in each language: sections of the Debian Reference (question: the section's title; text: the section without it) and
manual pages (question: the line under NAME; text: the DESCRIPTION). The same sections and pages exist in both languages, so
that a Spanish question can be asked for the English text. The packages are fetched with ``apt-get download`` and unpacked with
``dpkg-deb``; nothing is installed. Elsewhere: ``--corpus FILE``, lines of ``{"id", "query", "text"}``.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

PACKAGES: Final = ("debian-reference-en", "debian-reference-es", "manpages", "manpages-es")
_SHORTEST: Final = 200
_LONGEST: Final = 6000
_NUMBER = re.compile(r"^(\d+(?:\.\d+)+)\.\s+(.+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Item:
    """``id``: the same in both languages."""

    id: str
    query: str
    text: str


def fetch(folder: Path) -> Path:
    """The root of the unpacked packages, fetched unless they are there. Raises RuntimeError where apt or dpkg is missing."""
    root = folder / "root"
    if root.is_dir():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise RuntimeError("apt-get and dpkg-deb are needed to fetch the text; elsewhere give your own with --corpus FILE.")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, capture_output=True)
    unpacked = folder / "root.new"
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
    unpacked.rename(root)
    return root


def of_file(path: Path) -> list[Item]:
    """A corpus of one's own."""
    return [Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def sections(root: Path, language: str) -> list[Item]:
    """The sections of the Debian Reference; ``language``: ``en`` or ``es``."""
    found: dict[str, Item] = {}
    for path in sorted((root / "usr/share/debian-reference").glob(f"ch*.{language}.html")):
        reader = _Sections()
        reader.feed(path.read_text(encoding="utf-8"))
        for title, text in reader.sections:
            numbered = _NUMBER.match(title)
            if numbered is not None and len(text) >= _SHORTEST:
                found[numbered[1]] = Item(numbered[1], numbered[2], text[:_LONGEST])
    return list(found.values())


def pages(root: Path, language: str) -> list[Item]:
    """Manual pages, of the kinds that both languages have."""
    folder = root / "usr/share/man"
    folder = folder if language == "en" else folder / language
    found = []
    for path in sorted(folder.glob("man[1-8]/*.gz")):
        item = _page(path)
        if item is not None:
            found.append(item)
    return found


def shared(asked: list[Item], answered: list[Item]) -> list[Item]:
    """Items that ask in the words of the first list for a text of the second."""
    texts = {item.id: item.text for item in answered}
    return [Item(item.id, item.query, texts[item.id]) for item in asked if item.id in texts]


class _Sections(HTMLParser):
    """Splits a page at its headings."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[tuple[list[str], list[str]]] = []
        self._title = False

    @property
    def sections(self) -> Iterator[tuple[str, str]]:
        for title, text in self._parts:
            yield " ".join("".join(title).split()), re.sub(r"\s*\n\s*", "\n", "".join(text)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2", "h3", "h4", "h5"):
            self._title = True
            self._parts.append(([], []))
        elif tag in ("p", "pre", "li", "tr", "div") and self._parts:
            self._parts[-1][1].append("\n")
        elif tag == "td" and self._parts:
            self._parts[-1][1].append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "h4", "h5"):
            self._title = False

    def handle_data(self, data: str) -> None:
        if self._parts:
            self._parts[-1][0 if self._title else 1].append(data)


def _page(path: Path) -> Item | None:
    try:
        raw = gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    name = re.search(r"^\.SH \"?(?:NAME|NOMBRE)\"?\n(.+?)(?=^\.SH)", raw, re.MULTILINE | re.DOTALL)
    body = re.search(r"^\.SH \"?(?:DESCRIPTION|DESCRIPCI[OÓ]N)\"?\n(.+?)(?=^\.SH|\Z)", raw, re.MULTILINE | re.DOTALL)
    if name is None or body is None:
        return None
    query, text = _plain(name[1]).partition(" - ")[2], _plain(body[1])
    if not query or len(text) < _SHORTEST:
        return None
    return Item(path.name.removesuffix(".gz"), query, text[:_LONGEST])


def _plain(roff: str) -> str:
    """Text without roff's requests and escapes, as far as reading needs it."""
    lines = []
    for line in roff.splitlines():
        if line.startswith(('.\\"', "'\\\"", ".TS", ".TE", ".in", ".nf", ".fi", ".ad", ".hy", ".ie", ".el", ".ds", ".if")):
            continue
        if line.startswith((".", "'")):
            _, _, line = line.partition(" ")
            if not line:
                lines.append("")
                continue
        line = re.sub(r"\\f(?:\[[^\]]*\]|\(..|.)", "", line)
        line = line.replace("\\-", "-").replace("\\&", "").replace("\\ ", " ").replace("\\e", "\\").replace("\\(aq", "'")
        lines.append(html.unescape(re.sub(r"\\(?:\[[^\]]*\]|\(..|[|^%/~c])", "", line)).replace('"', ""))
    return "\n\n".join(" ".join(block.split()) for block in "\n".join(lines).split("\n\n") if block.strip())
