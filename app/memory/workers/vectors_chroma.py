"""Chroma: one collection a partition, in a folder of its own or on a server. Runs in the child only.

What it finds is scored again from the vectors that it returns, so scores mean the same as everywhere.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from chromadb.errors import NotFoundError

from app.memory.vectors.wire import Counts, Key
from app.memory.workers.vectors_backend import Refused
from app.memory.workers.vectors_chroma_places import Folders, Places, Server
from app.memory.workers.vectors_rows import best, sound

EXACT_ROWS: Final = 256
"""Up to here all rows are asked for, so that the search is exact."""
_PAGE = 5000
_BATCH = 1000
_MAX_OPEN = 32
_TURN = "turn"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """A collection that is open. ``turn``: who changed it last, as it stands in the collection too."""

    collection: Any
    rows: dict[str, str] = field(default_factory=dict)
    generation: int | None = None
    turn: str = ""
    dropped: bool = False


class ChromaBackend:
    """See `app.memory.workers.vectors_backend.Backend`. ``config``: ``folder``, or ``host``, ``port`` and ``tls``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._places: Places = Server(config) if "host" in config else Folders(config["folder"])
        self._held: OrderedDict[Key, _Held] = OrderedDict()

    def search(self, key: Key, generation: int, k: int, vector: bytes) -> list[tuple[str, float]] | None:
        """See `Backend.search`."""
        held = self._held.get(key)
        if held is None or held.generation is None or held.generation < generation:
            return None
        self._held.move_to_end(key)
        if k <= 0 or not held.rows:
            return [] if self._undisturbed(key, held) else None
        query = np.frombuffer(vector, "<f4")
        try:
            ids, vectors = self._near(held, query, k)
        except NotFoundError:  # another service has dropped it
            del self._held[key]
            return None
        except BaseException as error:
            if isinstance(error, Refused | KeyboardInterrupt | SystemExit | MemoryError):
                raise
            self._failed(key, error)  # of any kind: a panic in its native code is no Exception
            return None
        return best(query, ids, vectors, k) if self._undisturbed(key, held) else None

    def compare(self, key: Key, rows: Sequence[tuple[str, str]]) -> list[str]:
        """See `Backend.compare`."""
        wanted = dict(rows)
        held = self._open(key)
        held.generation = None
        held.turn = secrets.token_hex(8)
        self._places.changing(key)
        with self._places.guarded():
            # Before anything is taken out: another service that has the collection open sees that it was disturbed.
            held.collection.modify(metadata={_TURN: held.turn})
            gone = [id for id, content in held.rows.items() if wanted.get(id) != content]
            for start in range(0, len(gone), _BATCH):
                held.collection.delete(ids=gone[start : start + _BATCH])
        for id in gone:
            del held.rows[id]
        held.dropped = held.dropped or bool(gone)
        return [id for id in wanted if id not in held.rows]

    def put(self, key: Key, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Backend.put`."""
        held = self._held.get(key)
        good, vectors = sound(rows, key.dimensions)
        if len(good) < len(rows):
            logger.error("%d vectors that are not finite or not of length 1 were left out", len(rows) - len(good))
        if held is None or not good:
            return
        with self._places.guarded():
            ids = [id for id, _ in good]
            held.collection.upsert(ids=ids, embeddings=vectors, metadatas=[{"hash": content} for _, content in good])
        held.rows.update(good)

    def commit(self, key: Key, generation: int) -> None:
        """See `Backend.commit`."""
        held = self._held.get(key)
        if held is None:
            return
        if not self._undisturbed(key, held):
            del self._held[key]
            return
        held.generation = generation
        if not held.dropped:
            self._places.changed(key, generation)
        self._held.move_to_end(key)
        while len(self._held) > _MAX_OPEN:
            old, _ = self._held.popitem(last=False)
            self._places.close(old)

    def purge(self, key: Key) -> bool:
        """See `Backend.purge`."""
        for other in [
            each for each in self._held if (each.user, each.collection) == (key.user, key.collection) and each != key
        ]:
            del self._held[other]
            self._places.close(other)
        self._places.drop_others(key)
        held = self._held.get(key)
        if held is None or not held.dropped or not self._places.keeps_deleted:
            return True
        del self._held[key]
        self._places.drop(key)
        return False

    def forget(self, user: str, collection: str | None) -> None:
        """See `Backend.forget`."""
        for key in [each for each in self._held if each.user == user and collection in {None, each.collection}]:
            del self._held[key]
            self._places.close(key)
        self._places.forget(user, collection)

    def counts(self) -> Counts:
        """See `Counts`."""
        return Counts(len(self._held), sum(len(each.rows) for each in self._held.values()), 0, {})

    def idle(self) -> None:
        """Chroma saves by itself."""

    def _open(self, key: Key) -> _Held:
        held = self._held.get(key)
        if held is not None and held.generation is not None and self._undisturbed(key, held):
            return held
        # After a comparison that was broken off, or another service's: what is there is asked for anew.
        dropped = held is not None and held.dropped
        collection, rows = self._places.open(key, _listed)
        held = self._held[key] = _Held(collection, rows, dropped=dropped)
        return held

    def _near(self, held: _Held, query: Any, k: int) -> tuple[list[str], Any]:
        count = len(held.rows)
        wanted = count if count <= EXACT_ROWS else min(count, max(4 * k, k + 32))
        with self._places.guarded():
            found = held.collection.query(query_embeddings=[query], n_results=wanted, include=["embeddings"])
            ids, vectors = found["ids"][0], found["embeddings"][0]
            if len(ids) < wanted and count <= EXACT_ROWS:  # its graph may not reach everything
                found = held.collection.get(include=["embeddings"])
                ids, vectors = found["ids"], found["embeddings"]
        return list(ids), np.asarray(vectors, np.float32).reshape(len(ids), -1)

    def _undisturbed(self, key: Key, held: _Held) -> bool:
        """Whether nobody else has changed the collection since we did. Asked after a search: so what it missed is noticed."""
        return self._places.metadata(key, held.collection).get(_TURN) == held.turn

    def _failed(self, key: Key, error: BaseException) -> None:
        """An embedded collection that cannot be searched is damaged: it goes, and is filled again from the database."""
        logger.warning("a collection of Chroma failed and is made anew (%s)", type(error).__name__)
        del self._held[key]
        self._places.drop(key)


def _listed(collection: Any) -> dict[str, str]:
    """Ids and content hashes of all that is there."""
    rows: dict[str, str] = {}
    while True:
        page = collection.get(include=["metadatas"], limit=_PAGE, offset=len(rows))
        rows.update((id, str((said or {}).get("hash"))) for id, said in zip(page["ids"], page["metadatas"], strict=True))
        if len(page["ids"]) < _PAGE:
            return rows
