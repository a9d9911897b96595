"""A LoRA adapter in PEFT's two files, read as numbers and nothing else: JSON and safetensors, bounded, every matrix checked.

Runs in child processes only. What changes the meaning of the matrices (DoRA, ranks by layer, trained heads, …) is refused, not
passed over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors

from app.core.errors import ModelLoadFailed

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_MOST_CONFIG_BYTES: Final = 1 << 20
_MOST_WEIGHT_BYTES: Final = 4 << 30
_MOST_RANK: Final = 4096
_MOST_ALPHA: Final = 1e6
_NAME = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.lora_(?P<part>[AB])(?:\.default)?\.weight", re.ASCII)
_UNSUPPORTED: Final = (
    *("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias"),
    *("trainable_token_indices", "alora_invocation_tokens", "target_parameters"),
)
"""Fields of PEFT's configuration that change what the matrices mean, or add others."""

Array = Any


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter: W becomes W + scale · B · A. ``pairs``: A (rank, columns) and B (rows, rank) in float32, by module."""

    rank: int
    scale: float
    pairs: Mapping[str, tuple[Array, Array]]


def read_lora(folder: Path, *, sha256: str | None = None) -> Lora:
    """The adapter in ``folder``.

    Args:
        sha256: what the file of weights must hash to.

    Raises:
        ModelLoadFailed: a file is damaged or another one, or the adapter is of a kind that is not served; the text says why.
    """
    config = _config(folder / CONFIG)
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _MOST_RANK:
        raise ModelLoadFailed("The adapter's configuration names no usable rank.")
    if type(alpha) not in (int, float) or not 0 < alpha <= _MOST_ALPHA:
        raise ModelLoadFailed("The adapter's configuration names no usable alpha.")
    pairs = _pairs(folder / WEIGHTS, sha256)
    if any(a.shape[0] != rank for a, _ in pairs.values()):
        raise ModelLoadFailed("The adapter's matrices are not of the rank that its configuration names.")
    return Lora(rank, alpha / (rank**0.5 if config.get("use_rslora") else rank), pairs)


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
        raise ModelLoadFailed(f"The adapter uses what is not served here: {', '.join(used)}. Train it without.")
    return config


def _pairs(path: Path, sha256: str | None) -> dict[str, tuple[Array, Array]]:
    found: dict[str, dict[str, Array]] = {}
    for name, array in _tensors(path, sha256):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ModelLoadFailed("The adapter holds something else than LoRA matrices of linear layers.")
        parts = found.setdefault(match["module"], {})
        if match["part"] in parts:
            raise ModelLoadFailed("The adapter holds a matrix twice.")
        parts[match["part"]] = array
    if not found:
        raise ModelLoadFailed("The adapter holds no matrices.")
    for module, parts in found.items():
        a, b = parts.get("A"), parts.get("B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ModelLoadFailed(f"The adapter's matrices for {module[:100]} do not fit together.")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ModelLoadFailed(f"The adapter's matrices for {module[:100]} hold values that are no numbers.")
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _tensors(path: Path, sha256: str | None) -> Iterator[tuple[str, Array]]:
    try:
        if path.stat().st_size > _MOST_WEIGHT_BYTES:
            raise ModelLoadFailed("The adapter's weights are too large to be an adapter's.")
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise ModelLoadFailed("The adapter's weights have changed since they were made.")
        read: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
        for name, part in read(data):
            yield name, _array(part).reshape(part["shape"])
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelLoadFailed("The adapter's weights cannot be read: the file is damaged, or not safetensors.") from error


def _array(part: Mapping[str, Any]) -> Array:
    data, kind = part["data"], part["dtype"]
    if kind == "BF16":  # numpy knows no bfloat16: it is the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    if kind not in ("F16", "F32"):
        raise ModelLoadFailed("The adapter's matrices are of a number type that is not served.")
    return np.frombuffer(data, dtype="<f4" if kind == "F32" else "<f2").astype(np.float32)
