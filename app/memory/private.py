"""Which stored answers hold what only their user may read. Imports nothing, for the command line asks too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shows_private(stored: Mapping[str, Any]) -> bool:
    """Whether a prediction was answered with more in its prompt than is stored with it: facts, documents, a summary, or an
    earlier answer made with them. ``stored`` is its input.

    Such an answer may hold what only its user may read. It teaches no model and is nobody else's example.
    """
    context = stored.get("context") or {}
    return any(context.get(name) for name in ("facts", "passages", "summary", "private"))
