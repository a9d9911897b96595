"""Where a run's files lie, and how they are read: ids become paths here and nowhere else, and every read is bounded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.files import sync
from app.core.ids import is_uuid7

LOG: Final = "log.txt"
CANCEL: Final = "cancel"
"""A file of this name in a run's folder asks its supervisor, whichever process that is, to end it."""
_MOST_JSON: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of training below the data directory."""

    data: Path

    @property
    def runs(self) -> Path:
        return self.data / "runs"

    @property
    def adapters(self) -> Path:
        return self.data / "adapters"

    @property
    def bases(self) -> Path:
        """Base models as training reads them, made once from what serves."""
        return self.data / "bases"

    def run(self, run_id: str) -> Path:
        """The folder of a run. Raises ValueError for what is no id."""
        return self.runs / _checked(run_id)

    def snapshot(self, snapshot_id: str) -> Path:
        """The folder of a snapshot. Raises ValueError for what is no id."""
        return self.data / "snapshots" / _checked(snapshot_id)

    def adapter(self, run_id: str) -> Path:
        """The folder of a finished adapter. Raises ValueError for what is no id."""
        return self.adapters / _checked(run_id)


def make_private(folder: Path) -> None:
    """Makes a folder for us alone, unless it is there. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The object in a file; None: there is no file, or it holds no object. Raises OSError where it cannot be read."""
    data = read_bytes(path, limit=_MOST_JSON)
    try:
        found = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_bytes(path: Path, *, limit: int) -> bytes | None:
    """A file's content, at most ``limit`` bytes of it; None: there is no such file. Follows no link. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(limit)


def read_tail(path: Path, *, limit: int) -> bytes:
    """The last ``limit`` bytes of a file, from the beginning of a line; empty where there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - limit, 0))
        tail = file.read(limit)
    return tail if size <= limit else tail.partition(b"\n")[2] or tail


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, whole or not at all, for us alone. Raises OSError."""
    write_bytes(path, json.dumps(content, indent=1).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, for us alone. Raises OSError."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def _checked(name: str) -> str:
    if not is_uuid7(name):
        raise ValueError("not an id of ours")
    return name
