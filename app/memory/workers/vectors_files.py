"""Partitions on disk: written under another name and renamed, read only if their SHA-256 is right. Runs in the child only.

A file holds its rows (MessagePack: list of id and content hash), then the vectors; the lengths follow from the manifest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.core.files import sync
from app.memory.vectors.layout import DATA, MANIFEST, NEW, Manifest, read_manifest, remove

_LENGTH = struct.Struct("<Q")

logger = logging.getLogger(__name__)
_rows = msgspec.msgpack.Decoder(list[tuple[str, str]])


def write(stem: Path, generation: int, rows: list[tuple[str, str]], matrix: Any) -> None:
    """Writes one partition. Raises OSError; then what was there before is gone or whole."""
    head = msgspec.msgpack.encode(rows)
    vectors = memoryview(np.ascontiguousarray(matrix, "<f4")).cast("B") if len(rows) else memoryview(b"")
    digest, parts = hashlib.sha256(), (_LENGTH.pack(len(head)), head, vectors)
    stem.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data, manifest = stem.with_name(stem.name + DATA), stem.with_name(stem.name + MANIFEST)
    try:
        size = 0
        with (new := data.with_name(data.name + NEW)).open("wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        found = Manifest(generation, len(rows), int(matrix.shape[1]), size, digest.hexdigest())
        # Without a manifest the data file counts for nothing: so the two never speak of different things.
        manifest.unlink(missing_ok=True)
        new.replace(data)
        with (said := manifest.with_name(manifest.name + NEW)).open("wb") as file:
            file.write(found.encode())
            file.flush()
            os.fsync(file.fileno())
        said.replace(manifest)
        sync(stem.parent)
    except OSError:
        remove(stem)
        raise


def read(stem: Path, dimensions: int) -> tuple[int, list[tuple[str, str]], Any] | None:
    """Generation, rows and vectors; None where there is no file, or it is damaged: then it is removed."""
    manifest = read_manifest(stem.with_name(stem.name + MANIFEST))
    try:
        content = stem.with_name(stem.name + DATA).read_bytes() if manifest is not None else b""
        found = None if manifest is None else _checked(manifest, content, dimensions)
        if found is None:
            if content:
                logger.warning("a saved index of vectors was damaged; it is built anew from the database")
            remove(stem)
        return found
    except OSError as error:
        logger.warning("a saved index of vectors cannot be read (%s)", error.strerror)
        return None


def _checked(manifest: Manifest, content: bytes, dimensions: int) -> tuple[int, list[tuple[str, str]], Any] | None:
    if manifest.dimensions != dimensions or len(content) != manifest.length:
        return None
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        return None
    size = _LENGTH.unpack_from(content)[0]
    rows = _rows.decode(memoryview(content)[_LENGTH.size : _LENGTH.size + size])
    matrix = np.frombuffer(content, "<f4", offset=_LENGTH.size + size).reshape(len(rows), dimensions)
    return manifest.generation, rows, matrix
