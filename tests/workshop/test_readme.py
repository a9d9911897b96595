"""The two READMEs say the same, and every link in the documents leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("doc/**/*.md")])


def shape(path: Path) -> dict[str, object]:
    text = path.read_text(encoding="utf-8")
    return {
        "code": re.findall(r"```.*?```", text, re.S),
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)],
        "rows": len(re.findall(r"^\|", text, re.M)),
        "links": {link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("README", "doc/M1_"))},
    }


def test_both_languages_hold_the_same_code_headings_tables_and_links() -> None:
    assert shape(ROOT / "README.md") == shape(ROOT / "README.es.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_decisions_are_short_and_numbered_without_gaps() -> None:
    records = sorted((ROOT / "doc" / "adr").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 60 for path in records)
