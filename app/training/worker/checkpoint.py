"""Checkpoints of a run: tensors as safetensors, facts as JSON, a SHA-256 of each file. No pickle is written or read.

One is written under another name, brought to the disk and renamed, so a kill at any moment leaves the last one whole. The
newest two are kept: one that bit rot or a full disk has damaged is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.core.files import hash_file, sync

_TENSORS: Final = "tensors.safetensors"
_STATE: Final = "state.json"
_SUMS: Final = "sha256.json"
_KEPT: Final = 2
_MOST_JSON_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after ``step`` optimizer steps: tensors by name, and facts that fit into JSON."""

    step: int
    tensors: Mapping[str, Any]
    facts: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one folder, for one process at a time.

    Args:
        folder: made where it is missing; what a killed writer left half done is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def clean(self) -> None:
        """Removes what a killed writer left half done."""
        for left in self._folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, tensors: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Writes a checkpoint, whole or not at all, and removes all but the newest two. Raises OSError (disk full)."""
        target = self._folder / f"{step:09d}"
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            save_file(dict(tensors), fresh / _TENSORS)
            (fresh / _STATE).write_text(json.dumps({"step": step, **facts}, allow_nan=False))
            sums = {name: hash_file(fresh / name) for name in (_TENSORS, _STATE)}
            (fresh / _SUMS).write_text(json.dumps(sums))
            for path in (*fresh.iterdir(), fresh):
                sync(path)
            if target.exists():
                self._remove(target)
            fresh.rename(target)
            sync(self._folder)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        for old in self._names()[:-_KEPT]:
            self._remove(old)

    def newest(self, on_damaged: Callable[[int], None]) -> Checkpoint | None:
        """The newest whole checkpoint, or None. ``on_damaged`` hears the step of each that is passed over."""
        for folder in reversed(self._names()):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
                return _read(folder)
            on_damaged(int(folder.name))
        return None

    def _names(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if path.name.isdecimal() and len(path.name) == 9)

    def _remove(self, folder: Path) -> None:
        # Under another name first: half removed it would look like a damaged one.
        with contextlib.suppress(OSError):
            shutil.rmtree(folder.rename(self._folder / f".old-{folder.name}"))


def _read(folder: Path) -> Checkpoint:
    sums = _json(folder / _SUMS)
    for name in (_TENSORS, _STATE):
        if hash_file(folder / name) != sums[name]:
            raise ValueError("a file is not what was written")
    facts = _json(folder / _STATE)
    if facts["step"] != int(folder.name):
        raise ValueError("this is the checkpoint of another step")
    return Checkpoint(facts["step"], load_file(folder / _TENSORS), facts)


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError("too large")
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return found
