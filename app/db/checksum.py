"""SHA-256 over what a row says, so that a flipped bit on the disk is found when the row is read.

SQLite itself does not notice most of them. This finds damage, not forgery: whoever can write the file can also write a new sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any


def content_of(record: Any, *, without: frozenset[str]) -> dict[str, Any]:
    """The fields of a record dataclass by name, except ``without``."""
    return {field.name: getattr(record, field.name) for field in fields(record) if field.name not in without}


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex over the canonical JSON of ``content``: sorted keys, no spaces, ASCII, times in UTC with microseconds."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_canonical)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")
