"""The `Embedder` over the service's own models: unit vectors as bytes, the name of their space, and a cache for each user.

It loads nothing and talks to nobody: it asks the call that main gives it, which waits in the user's turn and heeds budgets.
"""

from __future__ import annotations

import array
import hashlib
import math
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from app.core.errors import InvalidRequest, Unavailable, UpstreamError
from app.core.settings import Memory
from app.core.types import EmbeddingRequest, Embeddings, VersionInfo
from app.memory.embedder import Kind

EmbedCall = Callable[[EmbeddingRequest, str], Awaitable[tuple[Embeddings, VersionInfo, str]]]
"""``(request, user_id)`` to the vectors, the version that made them, and its public name: `ModelManager.embed_version`."""

_BATCH_TEXTS: Final = 32
_BATCH_CHARACTERS: Final = 100_000
_CACHE_BYTES: Final = 32 << 20
_ENTRY_BYTES: Final = 400
"""What an entry costs beside its vector: the key with its digest, and the dictionary's own."""
_PROBE: Final = "a"

_Key = tuple[str, str, str, bytes]


class ModelEmbedder:
    """See `app.memory.embedder.Embedder`.

    Args:
        settings: section ``memory``; names the model.
        embed: how a model is asked.
        cache_bytes: most memory for known vectors.
    """

    def __init__(self, settings: Memory, embed: EmbedCall, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._model = settings.embedder
        self._embed = embed
        self._space: str | None = None
        self._cache = VectorCache(cache_bytes)

    async def space(self) -> str | None:
        """``name@version/dimensions``; None: none is configured. Raises AprendizError while the model cannot be asked.

        Asked once; from then on each answer of the model says whether it is still so.
        """
        if self._model and self._space is None:
            self._space = (await self._ask([_PROBE], "query", ""))[1]
        return self._space if self._model else None

    async def embed(self, texts: Sequence[str], *, kind: Kind, user_id: str, space: str | None = None) -> list[bytes]:
        """One vector a text, in order: 32-bit little-endian floats of length 1.

        Args:
            space: where the caller will use them; None: what `space` last said.

        Raises:
            Unavailable: the model's version has changed, so they would lie in another space. Ask `space`, then again.
            AprendizError: whatever the model raises; InvalidRequest where none is configured.
        """
        if not self._model:
            raise InvalidRequest("No embedder is configured; an administrator can set memory.embedder.")
        wanted = space or await self.space()
        if wanted is None or wanted != self._space:
            raise _changed()
        keys = [_key(user_id, wanted, kind, text) for text in texts]
        found = {key: vector for key in keys if (vector := self._cache.get(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        for batch in _batches(missing):
            vectors, made_in = await self._ask([missing[key] for key in batch], kind, user_id)
            if made_in != wanted:
                self._space = made_in
                raise _changed()
            for key, vector in zip(batch, vectors, strict=True):
                found[key] = vector
                self._cache.put(key, vector)
        return [found[key] for key in keys]

    def forget(self, user_id: str) -> None:
        """Drops all that is known of a user's texts."""
        self._cache.forget(user_id)

    async def _ask(self, texts: Sequence[str], kind: Kind, user_id: str) -> tuple[list[bytes], str]:
        """The vectors, and the space that they lie in."""
        # An empty text is nothing that vendors' embedders take; a space says as much.
        inputs = tuple(text if text.strip() else " ." for text in texts)
        found, version, name = await self._embed(EmbeddingRequest(inputs, self._model, kind=kind), user_id)
        if len(found.vectors) != len(texts):
            raise UpstreamError("The embedder did not send one vector for each text.")
        return [_packed(vector) for vector in found.vectors], f"{name}@{version.id}/{len(found.vectors[0])}"


class VectorCache:
    """Vectors by user, space, kind and text; the longest unused go first. ``most``: bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._known: OrderedDict[_Key, bytes] = OrderedDict()
        self._of_user: dict[str, set[_Key]] = {}

    def get(self, key: _Key) -> bytes | None:
        """The vector, if it is known."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def put(self, key: _Key, vector: bytes) -> None:
        """Keeps it; others may go for it."""
        self._drop(key)
        self._known[key] = vector
        self._of_user.setdefault(key[0], set()).add(key)
        self._used += len(vector) + _ENTRY_BYTES
        while self._used > self._most:
            self._drop(next(iter(self._known)))

    def forget(self, user_id: str) -> None:
        """Drops what is a user's."""
        for key in tuple(self._of_user.get(user_id, ())):
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        vector = self._known.pop(key, None)
        if vector is None:
            return
        self._used -= len(vector) + _ENTRY_BYTES
        own = self._of_user[key[0]]
        own.discard(key)
        if not own:
            del self._of_user[key[0]]


def _batches(missing: dict[_Key, str]) -> list[list[_Key]]:
    """The keys in groups that one call takes: few enough texts, few enough characters."""
    found: list[list[_Key]] = []
    size = 0
    for key, text in missing.items():
        if not found or len(found[-1]) >= _BATCH_TEXTS or size + len(text) > _BATCH_CHARACTERS:
            found.append([])
            size = 0
        found[-1].append(key)
        size += len(text)
    return found


def _key(user_id: str, space: str, kind: Kind, text: str) -> _Key:
    return (user_id, space, kind, hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def _packed(vector: Sequence[float]) -> bytes:
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not length > 0 or not math.isfinite(length):
        raise UpstreamError("The embedder sent a vector without direction.")
    packed = array.array("f", (value / length for value in vector))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _changed() -> Unavailable:
    return Unavailable("The embedding model has just changed. Try again.", retry_after=1)
