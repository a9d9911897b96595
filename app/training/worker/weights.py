"""A Llama-type model's weights in memory: frozen ones joined for `Joined`, trained ones as views of one flat float32 tensor.

One flat tensor makes the optimizer, the norm of the gradient and an all-reduce one operation each. Reads safetensors only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from app.training.worker.linear import Joined, LinearGrads
from app.training.worker.shape import Shape

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""Layers that share their input, by the name of their group."""


class Reader:
    """Tensors of a transformers folder by name."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        names: Mapping[str, str] = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        files = sorted(set(names.values())) or ["model.safetensors"]
        self._files: dict[str, Any] = {name: safe_open(str(folder / name), framework="pt") for name in files}
        self._where = {key: file for file in self._files.values() for key in file.keys()}  # noqa: SIM118  # not a mapping

    def __call__(self, name: str) -> Any:
        return self._where[name].get_tensor(name)


def group_sizes(shape: Shape) -> dict[str, tuple[tuple[int, ...], int, bool]]:
    """For each group the widths of its outputs, that of its input, and whether there is a bias."""
    q, k, v = shape.qkv
    return {
        "qkv": ((q, k, v), shape.width, shape.q_bias),
        "o": ((shape.width,), q, shape.o_bias),
        "gate_up": ((shape.inner, shape.inner), shape.width, shape.mlp_bias),
        "down": ((shape.width,), shape.inner, shape.mlp_bias),
    }


@dataclass(slots=True)
class Layer:
    """One decoder layer: norms [D] and [head] (float32), joined linear layers by group."""

    norms: dict[str, Any]
    linear: dict[str, Joined]


@dataclass(slots=True)
class Weights:
    """All weights as the computation wants them. ``embedding`` and ``head`` are [V, D], one and the same where tied."""

    embedding: Any
    head: Any
    norm: Any
    layers: list[Layer]


@dataclass(slots=True)
class Grads:
    """Views of one worker's flat gradient, in the shape of `Weights`. ``embedding``, ``head``, ``norm``: full tuning only."""

    flat: Any
    linear: list[dict[str, LinearGrads]]
    norms: list[dict[str, Any]] = field(default_factory=list)
    embedding: Any = None
    head: Any = None
    norm: Any = None


def norm_names(shape: Shape) -> dict[str, int]:
    """A layer's norms with their widths."""
    names = {"input_layernorm": shape.width, "post_attention_layernorm": shape.width}
    if shape.qk_norm:
        names |= {"self_attn.q_norm": shape.head, "self_attn.k_norm": shape.head}
    return names


def load(folder: Path, shape: Shape, dtype: Any, device: Any, rank: int) -> Weights:
    """Reads the folder; leaves room for A matrices of ``rank`` under each group (0: none).

    Raises:
        KeyError, OSError, safetensors' errors: not the weights of such a model.
    """
    read = Reader(folder)

    def number(name: str, kind: Any = dtype) -> Any:
        return read(name).to(device=device, dtype=kind)

    def joined(prefix: str, group: str) -> Joined:
        sizes, width, has_bias = group_sizes(shape)[group]
        weight = torch.zeros(sum(sizes) + rank * len(sizes), width, dtype=dtype, device=device)
        at = 0
        for name, size in zip(GROUPS[group], sizes, strict=True):
            weight[at : at + size] = read(f"{prefix}{name}.weight").to(device)
            at += size
        bias = torch.cat([number(f"{prefix}{name}.bias") for name in GROUPS[group]]) if has_bias else None
        return Joined(weight, sizes, rank, bias)

    layers = []
    for at in range(shape.layers):
        prefix = f"model.layers.{at}."
        norms = {name: number(f"{prefix}{name}.weight", torch.float32) for name in norm_names(shape)}
        layers.append(Layer(norms, {group: joined(prefix, group) for group in GROUPS}))
    embedding = number("model.embed_tokens.weight")
    head = embedding if shape.tied else number("lm_head.weight")
    return Weights(embedding, head, number("model.norm.weight", torch.float32), layers)


class LoraLayout:
    """Where each LoRA matrix lies in the flat tensor: layer by layer, group by group, first all A of a group, then each B."""

    def __init__(self, shape: Shape, rank: int) -> None:
        self.shape, self.rank = shape, rank
        sizes = group_sizes(shape)
        self.groups = {group: (outs, width) for group, (outs, width, _) in sizes.items()}
        self.size = shape.layers * sum(rank * (len(outs) * width + sum(outs)) for outs, width in self.groups.values())

    def blocks(self, flat: Any) -> Iterator[tuple[int, str, Any, list[Any]]]:
        """Views of ``flat``: for each layer and group its joined A [R, K] and its B matrices [size, rank]."""
        at = 0
        for layer in range(self.shape.layers):
            for group, (outs, width) in self.groups.items():
                rows = self.rank * len(outs)
                a = flat[at : at + rows * width].view(rows, width)
                at += rows * width
                b = []
                for out in outs:
                    b.append(flat[at : at + out * self.rank].view(out, self.rank))
                    at += out * self.rank
                yield layer, group, a, b

    def named(self, flat: Any) -> dict[str, Any]:
        """Views of ``flat`` by PEFT's names."""
        named: dict[str, Any] = {}
        for layer, group, joined, matrices in self.blocks(flat):
            for at, (name, b) in enumerate(zip(GROUPS[group], matrices, strict=True)):
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                named[f"{prefix}.lora_A.weight"] = joined[at * self.rank : (at + 1) * self.rank]
                named[f"{prefix}.lora_B.weight"] = b
        return named

    def grads(self, flat: Any, scale: float) -> Grads:
        linear: list[dict[str, LinearGrads]] = [{} for _ in range(self.shape.layers)]
        for layer, group, a, b in self.blocks(flat):
            linear[layer][group] = LinearGrads(a=a, b=b, scale=scale)
        return Grads(flat, linear)

    def refresh(self, flat: Any, weights: Weights, scale: float) -> None:
        """Copies the trained matrices to where the computation reads them, in its number type."""
        for layer, group, a, matrices in self.blocks(flat):
            linear = weights.layers[layer].linear[group]
            linear.weight[linear.out :].copy_(a)
            linear.b = [(b * scale).to(linear.weight.dtype) for b in matrices]


def first_lora(layout: LoraLayout, seed: int) -> Any:
    """The flat tensor at the start, as PEFT begins: A from Kaiming's uniform distribution, B zero."""
    flat = torch.zeros(layout.size)
    generator = torch.Generator().manual_seed(seed)
    for _, _, a, _ in layout.blocks(flat):
        bound = 1 / math.sqrt(a.shape[1])  # what kaiming_uniform_ with a = √5 comes to
        a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
    return flat


class FullLayout:
    """Where each weight lies in the flat tensor when all are trained: layers of a group lie under each other."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        entries: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (shape.vocabulary, shape.width))]
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}."
            entries += [(f"{prefix}{name}.weight", (width,)) for name, width in norm_names(shape).items()]
            for group, (outs, width, has_bias) in group_sizes(shape).items():
                entries += [(f"{prefix}{name}.weight", (out, width)) for name, out in zip(GROUPS[group], outs, strict=True)]
                if has_bias:
                    entries += [(f"{prefix}{name}.bias", (out,)) for name, out in zip(GROUPS[group], outs, strict=True)]
        entries.append(("model.norm.weight", (shape.width,)))
        if not shape.tied:
            entries.append(("lm_head.weight", (shape.vocabulary, shape.width)))
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}
        at = 0
        for name, size in entries:
            self.places[name] = (at, size)
            at += math.prod(size)
        self.size = at

    def named(self, flat: Any) -> dict[str, Any]:
        """Views of ``flat`` by transformers' names."""
        return {name: flat[at : at + math.prod(size)].view(size) for name, (at, size) in self.places.items()}

    def view(self, flat: Any, names: Sequence[str]) -> Any:
        """Tensors that lie one after the other, as one."""
        first, last = self.places[names[0]], self.places[names[-1]]
        width = first[1][1:]
        return flat[first[0] : last[0] + math.prod(last[1])].view(-1, *width)

    def weights(self, flat: Any) -> Weights:
        """``flat`` as the computation wants it."""
        named = self.named(flat)
        sizes = group_sizes(self.shape)
        layers = []
        for at in range(self.shape.layers):
            prefix = f"model.layers.{at}."
            linear = {}
            for group, (outs, _, has_bias) in sizes.items():
                bias = self.view(flat, [f"{prefix}{name}.bias" for name in GROUPS[group]]) if has_bias else None
                linear[group] = Joined(self.view(flat, [f"{prefix}{name}.weight" for name in GROUPS[group]]), outs, 0, bias)
            layers.append(Layer({name: named[f"{prefix}{name}.weight"] for name in norm_names(self.shape)}, linear))
        embedding = named["model.embed_tokens.weight"]
        return Weights(embedding, named.get("lm_head.weight", embedding), named["model.norm.weight"], layers)

    def grads(self, flat: Any, scale: float = 1.0) -> Grads:
        own = self.weights(flat)
        linear = [
            {group: LinearGrads(weight=each.weight, bias=each.bias) for group, each in layer.linear.items()}
            for layer in own.layers
        ]
        return Grads(flat, linear, [layer.norms for layer in own.layers], own.embedding, own.head, own.norm)
