"""An embedding model as ONNX Runtime and its tokenizer see it: files that are data only, texts in, unit vectors out.

The folder may come from strangers. Each file is bounded, has the hash that the parent names, and is read once; a model that
wants weights from elsewhere, or other inputs than ours, is refused. ``embedder.json`` (all optional): ``pooling`` ("mean",
"cls"), ``normalize`` (true), ``max_tokens`` (512), ``query_prefix`` and ``passage_prefix`` ("").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx.external_data_helper import uses_external_data
from tokenizers import Tokenizer

Array: TypeAlias = Any
Kind = Literal["query", "passage"]

_MOST_JSON = 64 << 20
_MOST_MODEL = (2 << 30) - 1
_MOST_TOKENS = 8192
_MOST_PREFIX = 1000
_CHARACTERS_PER_TOKEN = 24
"""More than any tokenizer puts into one on average: what lies beyond is never read anyway."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Refused(Exception):
    """The folder holds no model that we run; the text says why, in words for a caller."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``embedder.json`` says."""

    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_tokens: int = 512
    query_prefix: str = ""
    passage_prefix: str = ""


class EmbeddingModel:
    """A loaded model. ``threads``: of one computation; they sleep when they wait. Not for two threads at once."""

    def __init__(self, folder: Path, files: Mapping[str, str], *, threads: int) -> None:
        found = {name: _read(folder / name, digest) for name, digest in files.items() if name.endswith((".json", ".onnx"))}
        self.options = _options(found.get("embedder.json", b"{}"))
        self._tokenizer = _tokenizer(found["tokenizer.json"], self.options.max_tokens)
        for name in files.keys() - found.keys():
            _read(folder / name, files[name])
        self._session = _session(found["model.onnx"], folder, files, threads)
        self._inputs = [each.name for each in self._session.get_inputs()]
        if not {"input_ids"} <= set(self._inputs) <= set(_INPUTS):
            raise Refused("The model takes other inputs than input_ids, attention_mask and token_type_ids.")
        self._output = _output([each.name for each in self._session.get_outputs()])
        probe = self.embed([self.encode("a", "query"), self.encode("b c d", "query")])
        self.dimensions = probe.shape[1]

    def encode(self, text: str, kind: Kind) -> list[int]:
        """The tokens of a text with its prefix, cut at the model's maximum."""
        prefix = self.options.query_prefix if kind == "query" else self.options.passage_prefix
        kept = text[: self.options.max_tokens * _CHARACTERS_PER_TOKEN]
        ids: list[int] = self._tokenizer.encode(prefix + kept).ids
        return ids

    def embed(self, rows: Sequence[Sequence[int]]) -> Array:
        """One vector a row of tokens: [rows, dimensions]. Raises Refused where the model gives something else."""
        length = max(1, *map(len, rows))
        ids: Array = np.zeros((len(rows), length), np.int64)
        mask: Array = np.zeros((len(rows), length), np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found = np.asarray(self._session.run([self._output], {name: given[name] for name in self._inputs})[0], np.float32)
        vectors = self._pooled(found, mask)
        if vectors.shape[0] != len(rows) or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise Refused("The model gives no vectors: its output has another form, or holds what is no number.")
        if not self.options.normalize:
            return vectors
        normed: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return normed

    def _pooled(self, found: Array, mask: Array) -> Array:
        if found.ndim == 2:
            return found
        if found.ndim != 3 or found.shape[:2] != mask.shape:
            raise Refused("The model gives no vectors: its output has another form.")
        if self.options.pooling == "cls":
            return found[:, 0]
        total: Array = (found * mask[:, :, None].astype(np.float32)).sum(axis=1)
        return total / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)


def _read(path: Path, digest: str) -> bytes:
    if path.stat().st_size > (_MOST_JSON if path.suffix == ".json" else _MOST_MODEL):
        raise Refused(f"{path.name} is larger than we read.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused(f"{path.name} has changed since its hash was taken. Pull the model again.")
    return data


def _options(data: bytes) -> Options:
    try:
        found: dict[str, Any] = json.loads(data)
        options = Options(**found)
    except (ValueError, TypeError, RecursionError):
        raise Refused("embedder.json cannot be read, or says what we do not know.") from None
    prefixes = (options.query_prefix, options.passage_prefix)
    if (
        options.pooling not in ("mean", "cls")
        or not isinstance(options.normalize, bool)
        or type(options.max_tokens) is not int
        or not 8 <= options.max_tokens <= _MOST_TOKENS
        or any(not isinstance(each, str) or len(each) > _MOST_PREFIX for each in prefixes)
    ):
        raise Refused("embedder.json holds a value that is out of bounds.")
    return options


def _tokenizer(data: bytes, max_tokens: int) -> Tokenizer:
    try:
        found = Tokenizer.from_str(data.decode())
        found.no_padding()
        found.enable_truncation(max_length=max_tokens)
    # What the package raises for damaged input is Exception itself.
    except Exception as error:
        raise Refused("tokenizer.json is no tokenizer that we can read.") from error
    found.encode_special_tokens = True  # what a text says is text, never a token of control
    return found


def _session(data: bytes, folder: Path, files: Mapping[str, str], threads: int) -> onnxruntime.InferenceSession:
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise Refused("model.onnx is damaged, or no ONNX model.") from error
    outside = {_location(each) for each in _tensors(model.graph) if uses_external_data(each)}
    if model.functions or not outside <= files.keys():
        raise Refused("The model wants weights from a file that is not part of it, or functions of its own.")
    del model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait by spinning take the cores from the model that answers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    source: bytes | str = str(folder / "model.onnx") if outside else data
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:
        raise Refused("ONNX Runtime cannot load model.onnx: it is damaged, or has operators that are not known.") from error


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """All constants of a graph, those of the graphs inside it too."""
    found: list[onnx.TensorProto] = []
    waiting = [graph]
    while waiting:
        part = waiting.pop()
        found += part.initializer
        found += [tensor for sparse in part.sparse_initializer for tensor in (sparse.values, sparse.indices)]
        for attribute in (each for node in part.node for each in node.attribute):
            found += [attribute.t, *attribute.tensors]
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    return found


def _location(tensor: onnx.TensorProto) -> str:
    return next((each.value for each in tensor.external_data if each.key == "location"), "")


def _output(names: Sequence[str]) -> str:
    for wanted in ("sentence_embedding", "last_hidden_state", "token_embeddings"):
        if wanted in names:
            return wanted
    if not names:
        raise Refused("The model gives nothing.")
    return names[0]
