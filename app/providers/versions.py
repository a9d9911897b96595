"""What makes a version: hashes of weights, adapter and template, and the id over them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.core.files import hash_file
from app.core.types import VersionInfo

_ID_DIGITS = 16


def version_info(
    provider: str,
    model: str,
    *,
    base_hash: str | None,
    template_hash: str | None,
    adapter_hash: str | None = None,
    context_tokens: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> VersionInfo:
    """A `VersionInfo` with its id: equal provider and hashes, equal id."""
    parts = (provider, base_hash or "", adapter_hash or "", template_hash or "")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return VersionInfo(
        id=digest[:_ID_DIGITS],
        provider=provider,
        model=model,
        base_hash=base_hash,
        adapter_hash=adapter_hash,
        template_hash=template_hash,
        context_tokens=context_tokens,
        details=dict(details or {}),
    )


def text_hash(text: str) -> str:
    """SHA-256 hex of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class FileHashes:
    """SHA-256 of files, remembered for as long as size, times and inode stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    async def sha256(self, path: Path) -> str:
        """SHA-256 hex of the file's bytes, read in a thread. Raises OSError."""
        stat = await asyncio.to_thread(os.stat, path)
        signature = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if signature not in self._known:
            self._known[signature] = await asyncio.to_thread(hash_file, path)
        return self._known[signature]
