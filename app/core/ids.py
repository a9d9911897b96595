"""Identifiers: UUIDv7 (RFC 9562, section 5.7), so that ids sort by time and index well."""

from __future__ import annotations

import os
import re
import time
import uuid

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def uuid7(*, now_ms: int | None = None) -> str:
    """A new UUIDv7 as lower-case text. ``now_ms``: milliseconds since the epoch, for tests.

    Ids are names, never secrets: 74 bits are random, but OWASP ASVS 11.5.1 counts no UUID as a secret.
    """
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    value = (milliseconds & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF000 << 64) | (0x7000 << 64)
    value = value & ~(0xC000 << 48) | (0x8000 << 48)
    return str(uuid.UUID(int=value))


def first_uuid7(now_ms: int) -> str:
    """The least UUIDv7 of a millisecond: ids that are greater or equal were made then or later."""
    value = (now_ms & (2**48 - 1)) << 80 | 0x7 << 76 | 0x8 << 60
    return str(uuid.UUID(int=value))


def is_uuid7(text: str) -> bool:
    """Whether ``text`` has exactly the form that `uuid7` writes."""
    return _UUID.fullmatch(text) is not None
