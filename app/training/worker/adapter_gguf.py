"""A trained adapter for llama.cpp: PEFT's two files made into one GGUF file, checked against the base it belongs to.

Runs in child processes only. It reads JSON and safetensors and nothing that could run a program, and it is no converter of
models: names, shapes and the order of rows come from the base's own GGUF file. llama.cpp scales by alpha / rank as PEFT does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import safetensors

from app.core.errors import ModelLoadFailed
from app.core.files import sync

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_MOST_CONFIG_BYTES: Final = 1 << 20
_MOST_WEIGHT_BYTES: Final = 4 << 30
_MOST_RANK: Final = 4096
_NAME = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.lora_(?P<part>[AB])(?:\.default)?\.weight", re.ASCII)
_PERMUTED: Final = frozenset({"llama"})
"""Kinds whose GGUF files hold the rows of q and k in llama.cpp's own order."""
_PLAIN: Final = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "smollm3", "starcoder2"})
"""Kinds whose linear layers stand in the GGUF file as they are."""
_UNSUPPORTED: Final = (
    *("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias"),
    *("trainable_token_indices", "alora_invocation_tokens", "target_parameters"),
)
"""Fields of PEFT's configuration that change what the matrices mean, or add others."""

Array = Any


@dataclass(frozen=True, slots=True)
class _Base:
    """What the base's file says: its kind, the names and shapes (rows, columns) of its tensors, heads for q and k."""

    kind: str
    names: gguf.TensorNameMap
    shapes: Mapping[str, tuple[int, ...]]
    heads: int
    kv_heads: int


def write_gguf_adapter(adapter_folder: Path, base_gguf: Path, target: Path) -> None:
    """Writes ``target``, in float32, whole or not at all.

    Args:
        adapter_folder: holds PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``, LoRA on linear layers.
        base_gguf: the base that it was trained on.

    Raises:
        ModelLoadFailed: a file is damaged, or the adapter is none that llama.cpp can serve on this base; the text says why.
        OSError: the target cannot be written.
    """
    scale = _scale(_config(adapter_folder / ADAPTER_CONFIG))
    base = _base(base_gguf)
    pairs = _pairs(adapter_folder / ADAPTER_WEIGHTS)
    ranks = {a.shape[0] for a, _ in pairs.values()}
    if len(ranks) != 1 or not 1 <= min(ranks) <= _MOST_RANK:
        raise ModelLoadFailed("The adapter's matrices are not all of one rank.")
    with _replacing(target) as fresh:
        writer = gguf.GGUFWriter(str(fresh), arch=base.kind)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", scale * min(ranks))
        for module in sorted(pairs):
            name, a, b = _mapped(module, *pairs[module], base)
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=np.float32))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise ModelLoadFailed("The adapter's configuration is too large to be one.")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadFailed("The adapter's configuration cannot be read.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelLoadFailed("This is not a LoRA adapter in PEFT's format.")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise ModelLoadFailed(f"The adapter uses what cannot be converted: {', '.join(used)}. Train it without.")
    return config


def _scale(config: Mapping[str, Any]) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    sane = type(rank) is int and 1 <= rank <= _MOST_RANK and type(alpha) in (int, float)
    if not sane or not 0 < float(alpha or 0) < 1e6:
        raise ModelLoadFailed("The adapter's configuration names no usable rank and alpha.")
    return float(alpha or 0) / (float(rank or 1) ** 0.5 if config.get("use_rslora") else float(rank or 1))


def _base(path: Path) -> _Base:
    try:
        reader = gguf.GGUFReader(path)
        kind = str(reader.fields["general.architecture"].contents())
        blocks = int(reader.fields[f"{kind}.block_count"].contents())
        heads = _field(reader, f"{kind}.attention.head_count")
        kv_heads = _field(reader, f"{kind}.attention.head_count_kv") or heads
        # Dimensions stand fastest first in the file.
        shapes = {str(each.name): tuple(int(size) for size in reversed(each.shape.tolist())) for each in reader.tensors}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelLoadFailed("The base model's GGUF file cannot be read.") from error
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if kind not in kinds or kind not in _PERMUTED | _PLAIN:
        raise ModelLoadFailed(f"Adapters on models of the kind {kind[:40]!r} cannot be converted for llama.cpp yet.")
    if not 0 < blocks <= 1024 or heads < 1 or kv_heads < 1:
        raise ModelLoadFailed("The base model's GGUF file names no usable sizes.")
    return _Base(kind, gguf.get_tensor_name_map(kinds[kind], blocks), shapes, heads, kv_heads)


def _field(reader: gguf.GGUFReader, name: str) -> int:
    field = reader.fields.get(name)
    value = 0 if field is None else field.contents()
    return value if isinstance(value, int) else 0


def _pairs(path: Path) -> dict[str, tuple[Array, Array]]:
    """A (rank, columns) and B (rows, rank) by module, in float32."""
    found: dict[str, dict[str, Array]] = {}
    for name, array in _tensors(path):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ModelLoadFailed(f"The adapter holds {name[:100]!r}, which is no LoRA matrix of a linear layer.")
        found.setdefault(match["module"], {})[match["part"]] = array
    if not found:
        raise ModelLoadFailed("The adapter holds no matrices.")
    for module, parts in found.items():
        a, b = parts.get("A"), parts.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ModelLoadFailed(f"The adapter's matrices for {module[:100]} do not fit together.")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ModelLoadFailed(f"The adapter's matrices for {module[:100]} hold values that are no numbers.")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _tensors(path: Path) -> Iterator[tuple[str, Array]]:
    try:
        if path.stat().st_size > _MOST_WEIGHT_BYTES:
            raise ModelLoadFailed("The adapter's weights are too large to be an adapter's.")
        read: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
        parts = read(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelLoadFailed("The adapter's weights cannot be read: the file is damaged, or not safetensors.") from error
    for name, part in parts:
        yield name, _array(part).reshape(part["shape"])


def _array(part: Mapping[str, Any]) -> Array:
    data, kind = part["data"], part["dtype"]
    if kind == "BF16":  # numpy knows no bfloat16: it is the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if kind not in ("F16", "F32"):
        raise ModelLoadFailed("The adapter's matrices are of a number type that is not converted.")
    return np.frombuffer(data, dtype="<f4" if kind == "F32" else "<f2").astype(np.float32)


def _mapped(module: str, a: Array, b: Array, base: _Base) -> tuple[str, Array, Array]:
    """The matrices as the base's file names and orders them."""
    name = base.names.get_name(module)
    tensor = f"{name}.weight"
    if name is None or tensor not in base.shapes:
        raise ModelLoadFailed(f"The base model has no layer {module[:100]}: was the adapter trained on another base?")
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
