"""What the engine's process takes for an adapter before llama.cpp sees it: files of our own converter's form, and no others."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.providers.workers.llamacpp_adapter import AdapterRefused, check_adapter

Pair = tuple[str, Any]
Tensor = tuple[str, Sequence[int], int, bytes]
KEYS: Sequence[Pair] = (("general.type", "adapter"), ("adapter.type", "lora"), ("adapter.lora.alpha", 16.0))


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return text(name) + value
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    return text(name) + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))


def numbers(count: int, value: float = 0.5) -> bytes:
    return struct.pack(f"<{count}f", *([value] * count))


def tensors(*, a: Sequence[int] = (8, 2), b: Sequence[int] = (2, 4), value: float = 0.5) -> list[Tensor]:
    return [
        ("blk.0.attn_q.weight.lora_a", a, 0, numbers(16)),
        ("blk.0.attn_q.weight.lora_b", b, 0, numbers(8, value)),
    ]


def gguf(keys: Sequence[Pair] = KEYS, parts: Sequence[Tensor] | None = None, *, head: bytes = b"") -> bytes:
    """A GGUF file; ``head``: in place of its first bytes."""
    parts = tensors() if parts is None else parts
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(parts), len(keys)) + b"".join(pair(*each) for each in keys)
    data = b""
    for name, sides, kind, values in parts:
        out += text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, len(data))
        data += values + b"\0" * (-len(values) % 32)
    out += b"\0" * (-len(out) % 32) + data
    return head + out[len(head) :]


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(AdapterRefused) as caught:
        check_adapter(path, hashlib.sha256(data).hexdigest())
    assert str(path) not in caught.value.detail
    return caught.value.detail


def changed(place: str, value: Any) -> list[Pair]:
    return [(name, value if name == place else old) for name, old in KEYS]


def renamed(name: str | bytes) -> list[Tensor]:
    first, second = tensors()
    return [(name, *first[1:]), second]  # type: ignore[list-item]


def at(offset: int, data: bytes) -> Callable[[], bytes]:
    whole = gguf()
    return lambda: whole[:offset] + data + whole[offset + len(data) :]


HALF_NAN = struct.pack("<H", 0x7E00) * 16
BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a pickle": lambda: b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}" + b"\0" * 64,
    "zeros": lambda: b"\0" * 4096,
    "other magic": at(0, b"GGML"),
    "version 1": at(4, struct.pack("<I", 1)),
    "version huge": at(4, struct.pack("<I", 2**32 - 1)),
    "no tensors": lambda: gguf(parts=[]),
    "tensors huge": at(8, struct.pack("<Q", 2**62)),
    "one tensor more": at(8, struct.pack("<Q", 3)),
    "keys huge": at(16, struct.pack("<Q", 2**62)),
    "keys many": lambda: gguf([*KEYS, *((f"k{n}", n) for n in range(100))]),
    "key is long": lambda: gguf([*KEYS, ("k" * 300, 1)]),
    "key's length is huge": at(24, struct.pack("<Q", 2**63)),
    "text is huge": lambda: gguf([*KEYS, ("t", "x" * (1 << 17))]),
    "text's length is a lie": lambda: gguf([*KEYS, ("t", struct.pack("<IQ", 8, 2**40))]),
    "text is no text": lambda: gguf([*KEYS, ("t", struct.pack("<I", 8) + text(b"\xff\xfe"))]),
    "a list": lambda: gguf([*KEYS, ("l", struct.pack("<IIQ", 9, 4, 2**61))]),
    "a type that is none": lambda: gguf([*KEYS, ("l", struct.pack("<I", 99))]),
    "a key twice": lambda: gguf([*KEYS, ("general.type", "adapter")]),
    "another alignment": lambda: gguf([*KEYS, ("general.alignment", 1)]),
    "alignment nought": lambda: gguf([*KEYS, ("general.alignment", 0)]),
    "a model": lambda: gguf(changed("general.type", "model")),
    "a control vector": lambda: gguf(changed("adapter.type", "controlvector")),
    "no keys": lambda: gguf([]),
    "alpha is text": lambda: gguf(changed("adapter.lora.alpha", "16")),
    "alpha is NaN": lambda: gguf(changed("adapter.lora.alpha", float("nan"))),
    "alpha is infinite": lambda: gguf(changed("adapter.lora.alpha", float("inf"))),
    "alpha is negative": lambda: gguf(changed("adapter.lora.alpha", -1.0)),
    "alpha is nought": lambda: gguf(changed("adapter.lora.alpha", 0.0)),
    "alpha is a giant": lambda: gguf(changed("adapter.lora.alpha", 1e30)),
    "NaN in it": lambda: gguf(parts=tensors(value=float("nan"))),
    "infinity in it": lambda: gguf(parts=tensors(value=float("inf"))),
    "minus infinity in it": lambda: gguf(parts=tensors(value=float("-inf"))),
    "a giant in it": lambda: gguf(parts=tensors(value=-3e38)),
    "half a NaN": lambda: gguf(
        parts=[("output.weight.lora_a", (8, 2), 1, HALF_NAN), ("output.weight.lora_b", (2, 8), 1, HALF_NAN)]
    ),
    "quantised": lambda: gguf(parts=[(name, sides, 8, data) for name, sides, _, data in tensors()]),
    "a type of the future": lambda: gguf(parts=[(name, sides, 4000, data) for name, sides, _, data in tensors()]),
    "one dimension": lambda: gguf(parts=tensors(a=(16,))),
    "no dimension": lambda: gguf(parts=tensors(a=())),
    "three dimensions": lambda: gguf(parts=tensors(a=(8, 2, 1))),
    "a side of nought": lambda: gguf(parts=tensors(a=(8, 0))),
    "a side that overflows": lambda: gguf(parts=tensors(a=(2**63, 2))),
    "sides whose product overflows": lambda: gguf(parts=tensors(a=(2**32, 2**32))),
    "other ranks": lambda: gguf(parts=tensors(b=(4, 2))),
    "a rank of thousands": lambda: gguf(parts=tensors(a=(1, 5000), b=(5000, 1))),
    "only A": lambda: gguf(parts=[tensors()[0], ("blk.1.attn_q.weight.lora_a", (8, 2), 0, numbers(16))]),
    "A twice": lambda: gguf(parts=[tensors()[0], tensors()[0]]),
    "a norm": lambda: gguf(parts=renamed("blk.0.attn_norm.weight")),
    "an embedding": lambda: gguf(parts=renamed("token_embd.weight.lora_a")),
    "a name that is a path": lambda: gguf(parts=renamed("../../etc/passwd")),
    "a name that is long": lambda: gguf(parts=renamed("blk.0." + "x" * 300 + ".weight.lora_a")),
    "a name that is no text": lambda: gguf(parts=renamed(b"\xff\xff")),
    "a name with a nought": lambda: gguf(parts=renamed("blk.0.attn_q\0.weight.lora_a")),
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_files_are_refused(tmp_path: Path, case: str) -> None:
    assert refused(tmp_path / "a.gguf", BAD[case]())


def test_a_good_file_is_taken_and_no_other_under_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf())
    check_adapter(path, hashlib.sha256(gguf()).hexdigest())
    with pytest.raises(AdapterRefused, match="changed"):
        check_adapter(path, "00" * 32)


def test_cut_anywhere_it_is_refused(tmp_path: Path) -> None:
    whole = gguf()
    for size in range(len(whole) - 32):  # the last 32 bytes are the last matrix
        assert refused(tmp_path / "a.gguf", whole[:size])


def test_any_byte_changed_is_taken_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    whole, path = gguf(), tmp_path / "a.gguf"
    for place in range(0, len(whole)):
        data = whole[:place] + bytes((whole[place] ^ 0xFF,)) + whole[place + 1 :]
        path.write_bytes(data)
        try:
            check_adapter(path, hashlib.sha256(data).hexdigest())
        except AdapterRefused:
            continue


def test_offsets_that_lead_out_of_the_file(tmp_path: Path) -> None:
    whole = gguf()
    place = whole.index(b"lora_a") + len(b"lora_a") + 4 + 16 + 4
    for offset in (31, 64, 2**20, 2**40, 2**63, 2**64 - 32):
        assert refused(tmp_path / "a.gguf", whole[:place] + struct.pack("<Q", offset) + whole[place + 8 :])


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    good, digest = tmp_path / "good", hashlib.sha256(gguf()).hexdigest()
    good.write_bytes(gguf())
    (tmp_path / "link").symlink_to(good)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder", "absent"):
        with pytest.raises(AdapterRefused):
            check_adapter(tmp_path / name, digest)
    with pytest.raises(AdapterRefused):
        check_adapter(Path("/dev/zero"), digest)
