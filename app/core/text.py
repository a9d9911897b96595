"""What counts as text: one rule for every string that a person sends and that we keep; how names compare, how text is shown.

Lengths are counted in Unicode code points, as Python's ``len`` does and as test B7 states.
"""

from __future__ import annotations

import base64
import re
import unicodedata

from app.core.errors import InvalidRequest

# The list of test B7, to the letter: NUL (PostgreSQL cannot store it) and the other C0 characters except tab and newline,
# DEL, lone surrogates, U+FFFE (a byte-order mark read the wrong way round).
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe]")
# Prompts may come from Windows editors, so they may also hold a carriage return.
_FORBIDDEN_IN_PROMPT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe]")
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{400,}={0,2}")
# First bytes of PNG, JPEG, GIF, PDF, zip, gzip, ELF and PE once read as Latin-1 or UTF-8 text, or base64-encoded.
_MAGIC_TEXT = ("\x89PNG", "%PDF-", "PK\x03\x04", "\x7fELF", "GIF87a", "GIF89a", "MZ\x90", "\u00ff\u00d8\u00ff", "\x1f\u008b")
_MAGIC_BYTES = (b"\x89PNG", b"%PDF-", b"PK\x03\x04", b"\x7fELF", b"GIF8", b"MZ\x90", b"\xff\xd8\xff", b"\x1f\x8b")


def check_text(value: str, *, field: str, limit: int, allow_blank: bool = False, prompt: bool = False) -> str:
    """Returns ``value`` unchanged if it is storable text of at most ``limit`` code points.

    ``prompt`` also allows carriage returns.

    Raises:
        InvalidRequest: too long, blank, or holding a character that is not text; ``field`` names the place.
    """
    if len(value) > limit:
        raise InvalidRequest(f"{field} has {len(value)} characters; at most {limit} are allowed.", field=field)
    if not allow_blank and not value.strip().strip(_INVISIBLE):
        raise InvalidRequest(f"{field} is empty.", field=field)
    bad = (_FORBIDDEN_IN_PROMPT if prompt else _FORBIDDEN).search(value)
    if bad is not None:
        raise InvalidRequest(
            f"{field} holds the character U+{ord(bad.group()):04X} at position {bad.start()}, which is not text.",
            field=field,
        )
    return value


def check_not_binary(value: str, *, field: str) -> str:
    """Refuses files in disguise: known magic numbers, data: URLs, and long unbroken base64 blobs.

    The policy of ``/feedback`` ("sin binarios", M1 section 5): an unbroken base64 run of 400 or more characters is a blob.
    """
    if value.startswith(_MAGIC_TEXT) or value.lstrip()[:5].lower() == "data:":
        raise InvalidRequest(f"{field} looks like a binary file; send text.", field=field)
    for run in _BASE64_RUN.finditer(value):
        if _is_base64_blob(run.group()):
            raise InvalidRequest(f"{field} holds a base64 blob; send text.", field=field)
    return value


def storable(text: str) -> str:
    """``text`` with NUL and lone surrogates, which a database cannot hold, as U+FFFD.

    For what a model wrote: it is kept, not refused.
    """
    return _UNSTORABLE.sub("\ufffd", text)


def fold_name(name: str) -> str:
    """What makes two names the same: NFKC, then casefold (and NFKC again, because folding can undo it)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def visible(text: str, *, keep: str = "") -> str:
    """``text`` with control characters, line separators and lone surrogates as ``\\u001b``, but for those in ``keep``."""
    return "".join(char if char.isprintable() or char in keep else f"\\u{ord(char):04x}" for char in text)


def _is_base64_blob(run: str) -> bool:
    head = run[:64]
    try:
        decoded = base64.b64decode(head.replace("-", "+").replace("_", "/") + "=" * (-len(head) % 4))
    except ValueError:
        return False
    if decoded.startswith(_MAGIC_BYTES):
        return True
    # A run of one repeated letter ("aaaa...", "=====") is odd text; a blob uses most of the alphabet, in both cases.
    return len(set(run)) >= 32 and any(c.islower() for c in run) and any(c.isupper() for c in run)
