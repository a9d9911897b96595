"""What the child process of a store does with each request: one method each. Runs in the child only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.memory.vectors.wire import Counts, Key


class Refused(Exception):
    """It cannot be done; the text is for the caller: our own words, no path."""

    def __init__(self, detail: str, *, configuration: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.configuration = configuration


class Backend(Protocol):
    """FAISS or Chroma. Called from one thread; what a method does stands at its request in `app.memory.vectors.wire`."""

    def search(self, key: Key, generation: int, k: int, vector: bytes) -> list[tuple[str, float]] | None:
        """None: the partition is older than ``generation``, or not known."""

    def compare(self, key: Key, rows: Sequence[tuple[str, str]]) -> list[str]:
        """See `Compare`. Until `commit`, searches of the partition are stale."""

    def put(self, key: Key, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Put`."""

    def commit(self, key: Key, generation: int) -> None:
        """See `Commit`."""

    def purge(self, key: Key) -> bool:
        """See `Purge`; False: compare again."""

    def forget(self, user: str, collection: str | None) -> None:
        """See `Forget`."""

    def counts(self) -> Counts:
        """See `Counts`."""

    def idle(self) -> None:
        """Called about once a second while nothing is asked."""
