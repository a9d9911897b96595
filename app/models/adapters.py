"""Adapters on this machine's disk: one folder each, named by the run that made it, and used only if it is whole.

A folder holds PEFT's two files, the same adapter for llama.cpp, and ``manifest.json`` with the SHA-256 of each; it is built
elsewhere and renamed into place. Nothing here parses weights: that is for child processes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from app.core.errors import ModelLoadFailed
from app.core.files import FileHashes
from app.providers.base import AdapterFiles

MANIFEST: Final = "manifest.json"
CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
GGUF: Final = "adapter.gguf"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MOST_MANIFEST_BYTES: Final = 1 << 16
_MOST_BYTES: Final[Mapping[str, int]] = {CONFIG: 1 << 20, WEIGHTS: 4 << 30, GGUF: 4 << 30}
"""The files that an adapter may have, and how large each may be."""

_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Word = Annotated[str, msgspec.Meta(max_length=64)]
_Name = Annotated[str, msgspec.Meta(max_length=255)]
_MOST_FILES: Final = 256
"""Of a run that trained all weights: it is told what it is, not called damaged."""


class _Manifest(msgspec.Struct):
    name: _Word
    base_hash: _Hash
    method: _Word
    files: Annotated[dict[_Name, _Hash], msgspec.Meta(max_length=_MOST_FILES)]
    created_at: _Word
    tuning: _Word = "lora"


@dataclass(slots=True)
class Adapters:
    """The adapters below ``folder``; ``hashes`` remembers what was hashed. Give it to providers as their ``adapter``."""

    folder: Path
    hashes: FileHashes = field(default_factory=FileHashes)

    def __call__(self, name: str) -> AdapterFiles:
        """The checked files of an adapter. Reads all of them the first time, so call it in a thread.

        Raises:
            ModelLoadFailed: there is no such adapter, or its files are not those that its run wrote.
        """
        if _NAME.fullmatch(name) is None or not _is_folder(self.folder / name):
            raise ModelLoadFailed("There is no such adapter here.")
        folder = self.folder / name
        try:
            manifest = _manifest(folder)
            if manifest.tuning != "lora":
                raise ModelLoadFailed("This run trained all weights of its model: its result is a model, not an adapter.")
            if manifest.name != name or not {CONFIG, WEIGHTS} <= manifest.files.keys() <= _MOST_BYTES.keys():
                raise _damaged()
            for file in os.listdir(folder):
                if file != MANIFEST and file not in manifest.files:
                    raise _damaged()
            for file, digest in manifest.files.items():
                _check_plain(folder / file, _MOST_BYTES[file])
                if self.hashes.sha256(folder / file) != digest:
                    raise _damaged()
        except OSError as error:
            raise _damaged() from error
        return AdapterFiles(
            name=name,
            folder=folder,
            adapter_hash=manifest.files[WEIGHTS],
            base_hash=manifest.base_hash,
            files=dict(manifest.files),
            peft=folder,
            gguf=folder / GGUF if GGUF in manifest.files else None,
        )


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    _check_plain(path, _MOST_MANIFEST_BYTES)
    with path.open("rb") as file:
        text = file.read(_MOST_MANIFEST_BYTES + 1)
    try:
        return msgspec.json.decode(text, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged() from error


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _check_plain(path: Path, most: int) -> None:
    """No link, no pipe, no device: opening some of those hangs, and others lead out of the folder."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise _damaged()


def _damaged() -> ModelLoadFailed:
    return ModelLoadFailed("The adapter is damaged: restore it from a backup or train again; the version without it serves on.")
