"""Identifiers: UUIDv7 (RFC 9562, section 5.7), so that ids sort by time and index well."""

from __future__ import annotations

import os
import random
import re
import time
import uuid

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The digit that holds the variant: two bits given, two random."""
_random = random.Random(os.urandom(32))  # noqa: S311  # names, not secrets; the system's own generator lets go of the interpreter
os.register_at_fork(after_in_child=lambda: _random.seed(os.urandom(32)))
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def uuid7(*, now_ms: int | None = None) -> str:
    """A new UUIDv7 as lower-case text. ``now_ms``: milliseconds since the epoch, for tests.

    Ids are names, never secrets: 74 bits are random, but OWASP ASVS 11.5.1 counts no UUID as a secret.
    """
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    # Put together as text: uuid.UUID takes longer than all the rest of it.
    when, rest = f"{milliseconds & (2**48 - 1):012x}", f"{_random.getrandbits(80):020x}"
    return f"{when[:8]}-{when[8:]}-7{rest[:3]}-{_VARIANT[rest[3]]}{rest[4:7]}-{rest[7:19]}"


def first_uuid7(now_ms: int) -> str:
    """The least UUIDv7 of a millisecond: ids that are greater or equal were made then or later."""
    value = (now_ms & (2**48 - 1)) << 80 | 0x7 << 76 | 0x8 << 60
    return str(uuid.UUID(int=value))


def is_uuid7(text: str) -> bool:
    """Whether ``text`` has exactly the form that `uuid7` writes."""
    return _UUID.fullmatch(text) is not None
