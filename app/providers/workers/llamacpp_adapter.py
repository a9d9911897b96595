"""Whether an adapter's GGUF file may be given to llama.cpp, which trusts such files more than it should.

Runs in the engine's process, in plain Python. Taken is only what our own converter writes: pairs of LoRA matrices in float32 or
float16, whole, finite, in the file. Whether they fit the model llama.cpp checks itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_ALIGNMENT: Final = 32
_MOST_BYTES: Final = 4 << 30
_MOST_KEYS: Final = 64
_MOST_TENSORS: Final = 20_000
_MOST_NAME: Final = 256
_MOST_TEXT: Final = 1 << 16
_MOST_RANK: Final = 4096
_MOST_SIDE: Final = 1 << 22
_MOST_ALPHA: Final = 1e6
_TEXT: Final = 8
_SCALARS: Final[Mapping[int, str]] = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
_WIDTHS: Final[Mapping[int, int]] = {0: 4, 1: 2}
"""Bytes of a number by ggml's type: float32 and float16."""
_WILD: Final[Mapping[int, bytes]] = {4: bytes((0x7F, 0xFF)), 2: bytes((*range(0x7C, 0x80), *range(0xFC, 0x100)))}
"""Upper bytes of numbers that are infinite, none, or (of float32) so large that sums of them soon are."""
_TENSOR = re.compile(r"(blk\.[0-9]{1,4}\.[a-z_]{1,32}|output)\.weight\.lora_([ab])", re.ASCII)


class AdapterRefused(Exception):
    """The file is not given to llama.cpp; ``detail`` says why to the caller."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True, slots=True)
class _Tensor:
    columns: int
    rows: int
    width: int
    offset: int


def check_adapter(path: Path, sha256: str) -> None:
    """Reads all of the file. Raises AdapterRefused where it is not the one that ``sha256`` names, or is none to be trusted."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                raise AdapterRefused("The adapter is no plain file, or too large to be one.")
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise AdapterRefused("The adapter's file has changed since it was made.")
            file.seek(0)
            _check(file, status.st_size)
    except OSError as error:
        raise AdapterRefused(f"The adapter's file cannot be read ({error.strerror}).") from error


def _check(file: BinaryIO, size: int) -> None:
    magic, version, tensors, keys = struct.unpack("<4sIQQ", _read(file, 24))
    if magic != _MAGIC or version != _VERSION:
        raise AdapterRefused("The adapter is not a GGUF file of the version that is served.")
    if not 2 <= tensors <= _MOST_TENSORS or keys > _MOST_KEYS:
        raise _damaged()
    _check_keys(dict(_key(file) for _ in range(keys)), keys)
    found = dict(_tensor(file) for _ in range(tensors))
    if len(found) != tensors:
        raise _damaged()
    start = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
    for (name, part), tensor in found.items():
        other = found.get((name, "b" if part == "a" else "a"))
        if other is None or (part == "a" and (tensor.rows != other.columns or not 1 <= tensor.rows <= _MOST_RANK)):
            raise AdapterRefused("The adapter's matrices do not come in pairs that fit together.")
        _check_numbers(file, tensor, start, size)


def _check_keys(values: Mapping[str, object], count: int) -> None:
    alpha = values.get("adapter.lora.alpha")
    if len(values) != count or values.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        raise _damaged()
    if values.get("general.type") != "adapter" or values.get("adapter.type") != "lora":
        raise AdapterRefused("The file is not a LoRA adapter.")
    if not isinstance(alpha, float) or not math.isfinite(alpha) or not 0 < alpha <= _MOST_ALPHA:
        raise AdapterRefused("The adapter's scale is not a usable number.")


def _key(file: BinaryIO) -> tuple[str, object]:
    name = _text(file, _MOST_NAME)
    (kind,) = struct.unpack("<I", _read(file, 4))
    if kind == _TEXT:
        return name, _text(file, _MOST_TEXT)
    if kind not in _SCALARS:
        raise _damaged()
    form = f"<{_SCALARS[kind]}"
    return name, struct.unpack(form, _read(file, struct.calcsize(form)))[0]


def _tensor(file: BinaryIO) -> tuple[tuple[str, str], _Tensor]:
    match = _TENSOR.fullmatch(_text(file, _MOST_NAME))
    if match is None or _read(file, 4) != b"\x02\0\0\0":
        raise AdapterRefused("The adapter holds something else than LoRA matrices of layers.")
    columns, rows, kind, offset = struct.unpack("<QQIQ", _read(file, 28))
    if kind not in _WIDTHS:
        raise AdapterRefused("The adapter's matrices are of a number type that is not served.")
    if not (1 <= columns <= _MOST_SIDE and 1 <= rows <= _MOST_SIDE) or offset % _ALIGNMENT or offset > _MOST_BYTES:
        raise _damaged()
    return (match[1], match[2]), _Tensor(columns, rows, _WIDTHS[kind], offset)


def _check_numbers(file: BinaryIO, tensor: _Tensor, start: int, size: int) -> None:
    length = tensor.columns * tensor.rows * tensor.width
    if start + tensor.offset + length > size:
        raise _damaged()
    file.seek(start + tensor.offset)
    upper = _read(file, length)[tensor.width - 1 :: tensor.width]
    if len(upper.translate(None, _WILD[tensor.width])) != len(upper):
        raise AdapterRefused("The adapter holds values that are no usable numbers.")


def _text(file: BinaryIO, most: int) -> str:
    (length,) = struct.unpack("<Q", _read(file, 8))
    if length > most:
        raise _damaged()
    try:
        return _read(file, length).decode()
    except UnicodeDecodeError:
        raise _damaged() from None


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _damaged()
    return data


def _damaged() -> AdapterRefused:
    return AdapterRefused("The adapter's file is damaged.")
