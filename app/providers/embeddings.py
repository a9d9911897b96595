"""Reads the answer of ``POST /v1/embeddings``: as many vectors as were asked for, in their order, finite, all of one length."""

from __future__ import annotations

import array
import base64
import binascii
import math
import sys
from typing import Any

import msgspec

from app.core.errors import UpstreamError
from app.core.types import Embeddings

_MAX_DIMENSIONS = 65_536


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Body(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None


def read_embeddings(answer: Any, *, count: int, dimensions: int | None) -> Embeddings:
    """The vectors in ``answer``, decoded JSON of the format; numbers as a list or as base64 of little-endian float32.

    Args:
        count: how many texts there were.
        dimensions: the length that was asked for, or None for the model's own.

    Raises:
        UpstreamError: it is not that.
    """
    try:
        body = msgspec.convert(answer, _Body)
        vectors = [_vector(item.embedding) for item in sorted(body.data, key=lambda item: item.index)]
    except (msgspec.ValidationError, ValueError, binascii.Error) as error:
        raise UpstreamError("The model provider sent embeddings that cannot be read.") from error
    if sorted(item.index for item in body.data) != list(range(count)):
        raise UpstreamError("The model provider did not send one embedding for each text.")
    length = len(vectors[0]) if dimensions is None and vectors else dimensions
    if any(len(vector) != length for vector in vectors):
        raise UpstreamError("The model provider sent embeddings of another length than asked for.")
    usage = body.usage or _Usage()
    return Embeddings(tuple(vectors), max(usage.prompt_tokens, 0))


def _vector(numbers: list[float] | str) -> tuple[float, ...]:
    if isinstance(numbers, str):
        packed = array.array("f")
        packed.frombytes(base64.b64decode(numbers, validate=True))
        if sys.byteorder == "big":
            packed.byteswap()
        vector = tuple(packed)
    else:
        vector = tuple(numbers)
    if not 1 <= len(vector) <= _MAX_DIMENSIONS or not math.isfinite(sum(vector)):
        raise ValueError("no vector")
    return vector
