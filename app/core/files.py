"""What several layers need of files: the hash of their content, remembered or not, and making them outlive a power cut."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20


def hash_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex; ``on_bytes`` hears how many bytes are done. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes is not None:
                on_bytes(done)
    return digest.hexdigest()


class FileHashes:
    """SHA-256 of files, remembered for as long as a file's place, size, times and inode stay the same. Safe in threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file in hex. Reads it, so call it in a thread. Raises OSError."""
        stat = path.stat()
        signature = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if signature not in self._known:
            self._known[signature] = hash_file(path)
        return self._known[signature]


def sync(path: Path) -> None:
    """fsync of a file, or of a folder: then its names are safe too. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
