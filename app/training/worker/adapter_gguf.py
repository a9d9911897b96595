"""A trained adapter for llama.cpp: PEFT's two files made into one GGUF file, checked against the base it belongs to.

Runs in child processes only. It is no converter of models: names, shapes and the order of rows come from the base's own GGUF
file. llama.cpp scales by alpha / rank as PEFT does. Nothing is rounded: the file holds float32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from app.core.errors import ModelLoadFailed
from app.core.files import sync
from app.providers.workers.peft_files import Array, read_lora
from app.training.worker.gguf_header import GgufHeader, read_header

_PERMUTED: Final = frozenset({"llama"})
"""Kinds whose GGUF files hold the rows of q and k in llama.cpp's own order."""
_PLAIN: Final = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "smollm3", "starcoder2"})
"""Kinds whose linear layers stand in the GGUF file as they are."""
_MOST_BLOCKS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Base:
    """What the base's file says: its kind, the names and shapes (rows, columns) of its tensors, heads for q and k."""

    kind: str
    names: gguf.TensorNameMap
    shapes: Mapping[str, tuple[int, ...]]
    heads: int
    kv_heads: int


def write_gguf_adapter(adapter_folder: Path, base_gguf: Path, target: Path) -> None:
    """Writes ``target``, whole or not at all; the same input gives the same bytes.

    Args:
        adapter_folder: holds PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``, LoRA on linear layers.
        base_gguf: the base that it was trained on.

    Raises:
        ModelLoadFailed: a file is damaged, or the adapter is none that llama.cpp can serve on this base; the text says why.
        OSError: the target cannot be written.
    """
    base = _base(read_header(base_gguf))
    lora = read_lora(adapter_folder)
    with _replacing(target) as fresh:
        writer = gguf.GGUFWriter(str(fresh), arch=base.kind)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", lora.scale * lora.rank)
        for module in sorted(lora.pairs):
            name, a, b = _mapped(module, *lora.pairs[module], base)
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=np.float32))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _base(header: GgufHeader) -> _Base:
    kind = header.values.get("general.architecture")
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if kind not in kinds or kind not in _PERMUTED | _PLAIN:
        raise ModelLoadFailed(f"Adapters on models of the kind {str(kind)[:40]!r} cannot be converted for llama.cpp yet.")
    blocks = _number(header, f"{kind}.block_count")
    heads = _number(header, f"{kind}.attention.head_count")
    kv_heads = _number(header, f"{kind}.attention.head_count_kv") or heads
    if not 0 < blocks <= _MOST_BLOCKS or heads < 1:
        raise ModelLoadFailed("The base model's GGUF file names no usable sizes.")
    return _Base(kind, gguf.get_tensor_name_map(kinds[kind], blocks), header.shapes, heads, kv_heads)


def _number(header: GgufHeader, name: str) -> int:
    value: Any = header.values.get(name)
    return value if type(value) is int else 0


def _mapped(module: str, a: Array, b: Array, base: _Base) -> tuple[str, Array, Array]:
    """The matrices as the base's file names and orders them."""
    name = base.names.get_name(module)
    tensor = f"{name}.weight"
    if name is None or tensor not in base.shapes:
        raise ModelLoadFailed(f"The base model has no layer {module[:100]}: was the adapter trained on another base?")
    if name == "token_embd":
        raise ModelLoadFailed("Adapters of the embedding cannot be converted for llama.cpp; train it without.")
    if base.shapes[tensor] != (b.shape[0], a.shape[1]):
        raise ModelLoadFailed(f"The adapter's matrices for {module[:100]} do not fit the base: was it trained on another one?")
    if base.kind in _PERMUTED and name.endswith((".attn_q", ".attn_k")):
        b = _permuted(b, base.heads if name.endswith(".attn_q") else base.kv_heads)
    return tensor, a, b


def _permuted(rows: Array, heads: int) -> Array:
    """Rows from the two halves of each head, as transformers rotates them, to neighbours in pairs, as llama.cpp does."""
    count, columns = rows.shape
    if count % (2 * heads):
        raise ModelLoadFailed("The rows of the adapter do not divide among the base's heads.")
    return rows.reshape(heads, 2, count // heads // 2, columns).swapaxes(1, 2).reshape(count, columns)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A name to write under, which takes the place of ``target`` if all goes well."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(target)
        sync(target.parent)
    finally:
        fresh.unlink(missing_ok=True)
