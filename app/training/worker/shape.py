"""What a Llama-type model looks like, read from its config, and which models count as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types whose arithmetic `llama.py` has, each compared with transformers in the tests."""
_ROTARY: Final = ("default", "linear", "llama3")
"""Rotary embeddings whose frequencies do not depend on the length of a text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and switches. ``windows``: per layer how far back it sees (None: all); ``rotary``: whether it turns q and k.

    ``q_bias``, ``o_bias``, ``mlp_bias``: whether those layers have a bias. ``qk_norm``: RMSNorm of each head's q and k.
    """

    family: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    epsilon: float
    tied: bool
    q_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    rotary: tuple[bool, ...]

    @property
    def qkv(self) -> tuple[int, int, int]:
        return self.heads * self.head, self.kv_heads * self.head, self.kv_heads * self.head


def read_shape(config: Any) -> Shape | None:
    """The shape of a transformers config, or None: not a model that `llama.py` computes."""
    rope = getattr(config, "rope_parameters", None)
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return None
    if not rope or rope.get("rope_type") not in _ROTARY or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return None
    qwen2 = config.model_type == "qwen2"
    bias = bool(getattr(config, "attention_bias", False))
    layers = config.num_hidden_layers
    return Shape(
        family=config.model_type,
        layers=layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        epsilon=config.rms_norm_eps,
        tied=bool(config.tie_word_embeddings),
        q_bias=qwen2 or bias,
        o_bias=not qwen2 and bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        qk_norm=config.model_type == "qwen3",
        windows=_windows(config),
        rotary=tuple(map(bool, getattr(config, "no_rope_layers", None) or [True] * layers)),
    )


def _windows(config: Any) -> tuple[int | None, ...]:
    window: int | None = getattr(config, "sliding_window", None)
    layers: int = config.num_hidden_layers
    if config.model_type == "mistral":
        return (window,) * layers
    kinds = getattr(config, "layer_types", None)
    if kinds is None or window is None or not getattr(config, "use_sliding_window", True):
        return (None,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def frequencies(config: Any) -> tuple[Any, float]:
    """Inverse frequencies [head / 2] of the rotary embedding and the factor on its sine and cosine."""
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        inverse, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
        return inverse.float(), float(factor)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head), 1.0
