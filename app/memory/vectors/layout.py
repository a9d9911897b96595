"""Where FAISS keeps its partitions on disk: the child writes and reads them, the service throws stale ones away.

``<folder>/<owner>/<collection>-<space>.faiss`` holds rows and vectors, the ``.json`` beside it says of which
generation they are, and their SHA-256. They only make a start faster: without them, or where they are damaged, all is read
from the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from app.memory.vectors.wire import Key

DATA: Final = ".faiss"
MANIFEST: Final = ".json"
NEW: Final = ".new"
GENERATION: Final = "generation"
_FORMAT = 1
_HASH = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")
_MAX_MANIFEST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a data file holds. ``generation``: as in the database; ``length`` in bytes and ``sha256``: of the data file."""

    generation: int
    rows: int
    dimensions: int
    length: int
    sha256: str

    def encode(self) -> bytes:
        """With a check of its own."""
        body = {"format": _FORMAT, **asdict(self)}
        return json.dumps({**body, "check": _check(body)}, sort_keys=True).encode() + b"\n"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None where there is none, or it is damaged or of another format."""
    try:
        with path.open("rb") as file:
            body = json.loads(file.read(_MAX_MANIFEST_BYTES))
        check = body.pop("check")
        if check != _check(body) or body.pop("format") != _FORMAT:
            return None
        return Manifest(**body)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def place(folder: Path, key: Key) -> Path:
    """The partition's file, without its suffix. Raises ValueError where the key is not made of hashes."""
    if _HASH.fullmatch(key.user) is None or _NAME.fullmatch(key.name) is None:
        raise ValueError("a partition is named by hashes")
    return folder / key.user / key.name


def remove(stem: Path) -> None:
    """Removes a partition's files, the manifest first, and the owner's folder if it was the last. Raises OSError."""
    for suffix in (MANIFEST, DATA, MANIFEST + NEW, DATA + NEW):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stem.with_name(stem.name + suffix).unlink()
    with contextlib.suppress(OSError):  # not empty, or never made
        stem.parent.rmdir()


def stems(folder: Path, user: str, collection: str | None = None) -> Iterator[Path]:
    """The partitions of an owner (of one of its collections) that have files."""
    if _HASH.fullmatch(user) is None or (collection is not None and _HASH.fullmatch(collection) is None):
        raise ValueError("a partition is named by hashes")
    names = {path.name.partition(".")[0] for path in _listed(folder / user)}
    return (folder / user / name for name in sorted(names) if collection is None or name.startswith(f"{collection}-"))


def sweep(folder: Path, generations: Mapping[tuple[str, str], int]) -> None:
    """Removes the partitions that are not of the generation that the database has by the hashes of owner and collection.

    Whoever writes meanwhile loses a file that is made again. Raises OSError.
    """
    for owner in _listed(folder):
        for name in {path.name.partition(".")[0] for path in _listed(owner)}:
            stem = owner / name
            manifest = read_manifest(stem.with_name(name + MANIFEST))
            if manifest is None or generations.get((owner.name, name.partition("-")[0])) != manifest.generation:
                remove(stem)
            for suffix in (MANIFEST + NEW, DATA + NEW):
                stem.with_name(name + suffix).unlink(missing_ok=True)


def sweep_folders(folder: Path, generations: Mapping[tuple[str, str], int]) -> None:
    """The same for partitions that are folders with a file ``generation`` in it. No child may run. Raises OSError."""
    for owner in _listed(folder):
        for path in _listed(owner):
            if str(generations.get((owner.name, path.name.partition("-")[0]))) != read_generation(path):
                shutil.rmtree(path)
        with contextlib.suppress(OSError):  # not empty
            owner.rmdir()


def read_generation(folder: Path) -> str:
    """What a partition's folder says of itself; nothing where it was left in the middle of a change."""
    try:
        return (folder / GENERATION).read_text()
    except (OSError, ValueError):
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _check(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
