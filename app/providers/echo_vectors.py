"""The echo provider's embeddings: words hashed into 64 numbers. Texts that share words are near; meaning plays no part."""

from __future__ import annotations

import hashlib
import math
import re

from app.core.errors import InvalidRequest
from app.core.types import EmbeddingRequest, Embeddings

DIMENSIONS = 64
_WORD = re.compile(r"\w+")


def embed(request: EmbeddingRequest) -> Embeddings:
    """One vector of length 1 for each text. A token is a word. Raises InvalidRequest for more than `DIMENSIONS` dimensions."""
    size = DIMENSIONS if request.dimensions is None else request.dimensions
    if not 1 <= size <= DIMENSIONS:
        raise InvalidRequest(f"This model's vectors have at most {DIMENSIONS} dimensions.", field="dimensions")
    vectors = tuple(_vector(text, size) for text in request.inputs)
    return Embeddings(vectors, sum(len(text.split()) for text in request.inputs))


def _vector(text: str, size: int) -> tuple[float, ...]:
    values = [0.0] * DIMENSIONS
    for word in _WORD.findall(text.casefold()) or [text]:
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=2).digest()
        values[digest[0] % DIMENSIONS] += 1.0 if digest[1] & 1 else -1.0
    values = values[:size]
    length = math.sqrt(sum(value * value for value in values))
    if length == 0:  # all words cancelled out, or fell beyond ``size``
        return (1.0, *[0.0] * (size - 1))
    return tuple(value / length for value in values)
