"""What memory needs of an embedder: unit vectors of texts, and the name of the space they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

Kind = Literal["query", "passage"]


class Embedder(Protocol):
    """Makes vectors. Those of two spaces are never compared."""

    async def space(self) -> str | None:
        """``name@version/dimensions`` of the vectors that it makes now; None: none is configured.

        Raises AprendizError (Unavailable, UnknownModel, ModelLoadFailed) while it cannot say.
        """

    async def embed(self, texts: Sequence[str], *, kind: Kind, user_id: str) -> list[bytes]:
        """One vector a text, in order: 32-bit little-endian floats of length 1. Known texts of the same user come from a cache.

        Raises AprendizError where it cannot. Texts longer than the model reads are cut by the model: chunks are made to fit.
        """
