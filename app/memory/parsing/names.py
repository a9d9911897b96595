"""Names that a client gives to files and collections. None of them ever becomes part of a path."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from app.core.errors import InvalidRequest

COLLECTION: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
"""What a collection may be called, in full."""
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that a reader does not see, or that turn the order of others round."""
MOST_NAME: Final = 255


def check_collection(name: str) -> str:
    """Returns ``name`` unchanged if it may name a collection. Raises InvalidRequest."""
    if COLLECTION.fullmatch(name) is None:
        raise InvalidRequest(
            "A collection's name has 1 to 64 characters: a-z, 0-9, dot, hyphen and underscore; a letter or digit first.",
            field="collection",
        )
    return name


def display_name(name: str) -> str:
    """A file's name as it is shown: its last part, no control or invisible characters, at most 255 characters; never empty.

    Only text: where a file lies is never told by it.
    """
    last = re.split(r"[/\\]", name[: 16 * MOST_NAME].rstrip("/\\ "))[-1]
    seen = "".join(" " if unicodedata.category(char) in _UNSEEN else char for char in unicodedata.normalize("NFC", last))
    shown = " ".join(seen.split())
    if len(shown) > MOST_NAME:  # its end tells what it is
        shown = f"{shown[: MOST_NAME - 32]}…{shown[-31:]}"
    return shown if shown.strip(". ") else "document"
