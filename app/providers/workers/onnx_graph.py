"""A BERT encoder as an ONNX model with block-quantised weights: token ids and a mask in, the last hidden states out.

The weights go in as they are (nibbles and scales, `Blocks`), so nothing is lost on the way: ONNX Runtime's ``MatMulNBits`` and
``GatherBlockQuantized`` compute with them. The bytes of a model follow from its weights alone. It trains nothing and runs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CONTRIB = "com.microsoft"
_OPSET = 20
_IR = 9
_INT8_ACTIVATIONS = 4

Array: TypeAlias = Any
Norm: TypeAlias = tuple[Array, Array]


class Damaged(Exception):
    """A model's file is not what it should be; the text says why, without a path."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a BERT encoder. ``types``: kinds of token; ``epsilon``: of its layer norms."""

    width: int
    layers: int
    heads: int
    inner: int
    words: int
    positions: int
    types: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [rows, blocks of 32 columns]: ``codes`` [rows, blocks, bytes] with the lower column in the lower bits,
    ``scales`` [rows, blocks]. A weight is (code - 2^(bits-1)) * scale."""

    codes: Array
    scales: Array
    bits: int

    @staticmethod
    def stack(parts: Sequence[Blocks]) -> Blocks:
        """The rows of all parts, one below the other."""
        return Blocks(
            np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts]), parts[0].bits
        )

    @staticmethod
    def of(matrix: Array) -> Blocks:
        """``matrix`` in 8 bits, each 32 columns with a scale of their own."""
        rows, columns = matrix.shape
        parts = matrix.reshape(rows, columns // 32, 32)
        scales = (np.abs(parts).max(axis=2) / np.float32(127)).astype(np.float32)
        safe = np.where(scales == 0, np.float32(1), scales)
        codes = np.rint(parts / safe[:, :, None]).astype(np.int16) + 128
        return Blocks(codes.astype(np.uint8), scales, bits=8)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def columns(self) -> int:
        """How many there are."""
        return int(self.scales.shape[1]) * 32


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. ``attention``: query, key and value below one another."""

    attention: Blocks
    attention_bias: Array
    out: Blocks
    out_bias: Array
    norm: Norm
    up: Blocks
    up_bias: Array
    down: Blocks
    down_bias: Array
    last_norm: Norm


@dataclass(frozen=True, slots=True)
class Bert:
    """All weights. ``places``: the vectors of positions, with that of the first kind of token added."""

    shape: Shape
    words: Blocks
    places: Array
    norm: Norm
    layers: tuple[Layer, ...]


def build(bert: Bert) -> bytes:
    """The model, serialised: inputs ``input_ids`` and ``attention_mask`` [batch, length], output ``last_hidden_state``."""
    graph = _Graph(bert.shape)
    graph.embed(bert)
    for number, layer in enumerate(bert.layers):
        graph.layer(number, layer)
    graph.node("Identity", [graph.last], "last_hidden_state")
    sizes = ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*sizes, bert.shape.width])
    made = helper.make_graph(graph.nodes, "bert", inputs, [output], graph.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=_IR, producer_name="aprendiz")
    found: bytes = model.SerializeToString(deterministic=True)
    return found


class _Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = ""

    def embed(self, bert: Bert) -> None:
        """Words and places to the first hidden states."""
        words = bert.words
        codes = words.codes.reshape(len(words), -1)
        bits = words.bits
        self.last = self.node(
            "GatherBlockQuantized",
            [self.constant("words.codes", codes), "input_ids", self.constant("words.scales", words.scales)],
            "words",
            domain=_CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=32,
            bits=bits,
        )
        length = self.node("Shape", ["input_ids"], "length", start=1, end=2)
        begin = self.constant("zero", np.array([0], np.int64))
        axis = self.constant("one", np.array([0], np.int64))
        places = self.node("Slice", [self.constant("places.all", bert.places), begin, length, axis], "places")
        self.last = self.normed("embedded", self.node("Add", [self.last, places], "embedding"), bert.norm)
        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)

    def layer(self, number: int, layer: Layer) -> None:
        """One layer on the last hidden states."""
        at = f"layer{number}."
        both = self.product(f"{at}qkv", self.last, layer.attention, layer.attention_bias)
        parts = [f"{at}{name}" for name in ("q", "k", "v")]
        self.nodes.append(helper.make_node("Split", [both], parts, name=f"{at}split", axis=-1, num_outputs=3))
        seen = self.node("MultiHeadAttention", [*parts, "", "mask"], f"{at}seen", domain=_CONTRIB, num_heads=self.shape.heads)
        out = self.product(f"{at}out", seen, layer.out, layer.out_bias)
        middle = self.normed(f"{at}middle", self.node("Add", [self.last, out], f"{at}first"), layer.norm)
        up = self.node("Gelu", [self.product(f"{at}up", middle, layer.up, layer.up_bias)], f"{at}gelu")
        down = self.product(f"{at}down", up, layer.down, layer.down_bias)
        self.last = self.normed(f"{at}end", self.node("Add", [middle, down], f"{at}second"), layer.last_norm)

    def product(self, name: str, given: str, weights: Blocks, bias: Array) -> str:
        """``given`` times the transposed ``weights``, plus ``bias``."""
        inputs = [
            given,
            self.constant(f"{name}.codes", weights.codes),
            self.constant(f"{name}.scales", weights.scales),
            "",
            "",
            self.constant(f"{name}.bias", bias),
        ]
        return self.node(
            "MatMulNBits",
            inputs,
            name,
            domain=_CONTRIB,
            K=weights.columns,
            N=len(weights),
            bits=weights.bits,
            block_size=32,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def normed(self, name: str, given: str, norm: Norm) -> str:
        """``given``, each vector brought to mean 0 and variance 1, scaled and shifted."""
        scale, shift = self.constant(f"{name}.scale", norm[0]), self.constant(f"{name}.shift", norm[1])
        return self.node("LayerNormalization", [given, scale, shift], name, axis=-1, epsilon=self.shape.epsilon)

    def node(self, kind: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: object) -> str:
        """Adds a node whose one output has its name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def constant(self, name: str, values: Array) -> str:
        """Adds a constant."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name
