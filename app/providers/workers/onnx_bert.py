"""Reads a BERT encoder as sentence-transformers lays it out: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

The weights become 8-bit blocks (`workers.onnx_graph`); the tokenizer stays as it is. Only what BERT needs is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from app.providers.workers.onnx_graph import Bert, Blocks, Damaged, Layer, Shape

Array: TypeAlias = Any

_MOST_HEADER = 16 << 20
_MOST = {"width": 4096, "layers": 64, "heads": 64, "inner": 16_384, "words": 1_000_000, "positions": 8192, "types": 16}
_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "words": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
}


def convert(files: Mapping[str, bytes]) -> tuple[Bert, bytes]:
    """The weights and the tokenizer. Raises Damaged."""
    try:
        config = json.loads(files["config.json"])
        given = {name: config[key] for name, key in _NAMES.items()}
        kind = (config["model_type"], config["hidden_act"])
        epsilon = float(config["layer_norm_eps"])
        weights, tokenizer = files["model.safetensors"], files["tokenizer.json"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("a file or a value is missing") from error
    if kind != ("bert", "gelu") or any(type(given[name]) is not int or not 1 <= given[name] <= _MOST[name] for name in _MOST):
        raise Damaged("it is no BERT, or its sizes are out of bounds")
    if given["width"] % 32 or given["inner"] % 32:
        raise Damaged("a width is no multiple of 32")
    return _weights(Shape(**given, epsilon=epsilon), _Tensors(weights)), tokenizer


class _Tensors:
    """The tensors of a safetensors file: a length, a header in JSON, then numbers."""

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(_MOST_HEADER, len(data) - 8):
            raise Damaged("its header is out of bounds")
        try:
            self._header = json.loads(data[8 : 8 + size])
        except (ValueError, RecursionError) as error:
            raise Damaged("its header cannot be read") from error
        self._data = memoryview(data)[8 + size :]

    def read(self, name: str, *shape: int) -> Array:
        """The numbers called ``name``, in 32 bits."""
        try:
            entry = self._header[name]
            start, stop = entry["data_offsets"]
            right = (entry["dtype"], entry["shape"]) == ("F32", list(shape)) and stop - start == 4 * math.prod(shape)
            if not right or not 0 <= start <= stop <= len(self._data):
                raise Damaged(f"{name} has another size than it should")
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{name} is missing") from error
        found = np.frombuffer(self._data[start:stop], "<f4").reshape(shape)
        if not np.isfinite(found).all():
            raise Damaged(f"{name} holds what is no number")
        return found


def _weights(shape: Shape, tensors: _Tensors) -> Bert:
    width, inner = shape.width, shape.inner
    at = "embeddings."
    kinds = tensors.read(f"{at}token_type_embeddings.weight", shape.types, width)
    layers = tuple(_layer(tensors, f"encoder.layer.{number}.", width, inner) for number in range(shape.layers))
    return Bert(
        shape=shape,
        words=Blocks.of(tensors.read(f"{at}word_embeddings.weight", shape.words, width)),
        places=tensors.read(f"{at}position_embeddings.weight", shape.positions, width) + kinds[0],
        norm=_norm(tensors, f"{at}LayerNorm", width),
        layers=layers,
    )


def _layer(tensors: _Tensors, at: str, width: int, inner: int) -> Layer:
    own = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
    return Layer(
        attention=Blocks.of(np.concatenate([tensors.read(f"{name}.weight", width, width) for name in own])),
        attention_bias=np.concatenate([tensors.read(f"{name}.bias", width) for name in own]),
        out=Blocks.of(tensors.read(f"{at}attention.output.dense.weight", width, width)),
        out_bias=tensors.read(f"{at}attention.output.dense.bias", width),
        norm=_norm(tensors, f"{at}attention.output.LayerNorm", width),
        up=Blocks.of(tensors.read(f"{at}intermediate.dense.weight", inner, width)),
        up_bias=tensors.read(f"{at}intermediate.dense.bias", inner),
        down=Blocks.of(tensors.read(f"{at}output.dense.weight", width, inner)),
        down_bias=tensors.read(f"{at}output.dense.bias", width),
        last_norm=_norm(tensors, f"{at}output.LayerNorm", width),
    )


def _norm(tensors: _Tensors, name: str, width: int) -> tuple[Array, Array]:
    return tensors.read(f"{name}.weight", width), tensors.read(f"{name}.bias", width)
