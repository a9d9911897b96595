"""The head of a GGUF file: its single values, and the shapes of its tensors. No weights, no vocabulary.

The official reader makes an object of each of a vocabulary's hundred thousand texts, which takes as long as a small training
run; a run that only asks for names and shapes passes them by. Every count is bounded by the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.errors import ModelLoadFailed

_TEXT: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """``values``: numbers, truths and texts by key, without lists. ``shapes``: (rows, columns) by tensor, slowest first."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> GgufHeader:
    """The head of ``path``. Raises ModelLoadFailed where it is no whole GGUF head of version 2 or 3."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).header()
    except (OSError, ValueError, struct.error) as error:
        raise ModelLoadFailed("The base model's GGUF file cannot be read.") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def header(self) -> GgufHeader:
        magic, version, tensors, keys = self._take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not a GGUF file")
        values: dict[str, Any] = {}
        for _ in range(keys):
            name, (kind,) = self._text(), self._take("I")
            if kind == _ARRAY:
                self._skip_list()
            else:
                values[name] = self._value(kind)
        shapes = {}
        for _ in range(tensors):
            name, (count,) = self._text(), self._take("I")
            if count > _MOST_DIMENSIONS:
                raise ValueError("a tensor of too many dimensions")
            shapes[name] = tuple(reversed(self._take(f"{count}Q")))
            self._take("IQ")
        return GgufHeader(values, shapes)

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found

    def _text(self) -> str:
        (size,) = self._take("Q")
        (text,) = self._take(f"{min(size, len(self._data))}s")
        return bytes(text).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind not in _SCALARS:
            raise ValueError("a value of an unknown type")
        return self._take(_SCALARS[kind])[0]

    def _skip_list(self) -> None:
        kind, count = self._take("IQ")
        if kind != _TEXT and kind not in _SCALARS:
            raise ValueError("a list of an unknown type")
        if kind != _TEXT:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
            return
        for _ in range(count):
            self._skip(self._take("Q")[0])

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("the file is cut off")
