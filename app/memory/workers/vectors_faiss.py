"""FAISS: partitions in memory up to a bound, the least recently used leave first; saved in quiet times. Runs in the child only.

A second thread, at a lower priority, builds approximate indexes and writes files; searches never wait for either.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss

from app.memory.vectors.layout import place, remove, stems
from app.memory.vectors.wire import Counts, Key
from app.memory.workers import vectors_files as files
from app.memory.workers.vectors_partition import Partition

_QUIET_S = 5.0
_NICE = 10
_DEFAULT_BYTES = 1 << 30

logger = logging.getLogger(__name__)


class FaissBackend:
    """See `app.memory.workers.vectors_backend.Backend`.

    ``config``: ``folder``; ``bytes``: bound of what is held in memory, 1 GiB unless told; ``quiet_s``: how long a partition
    must have stayed as it is before it is saved.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        faiss.omp_set_num_threads(1)  # the service wants the other cores
        self._folder = Path(config["folder"])
        self._bytes = int(config.get("bytes") or _DEFAULT_BYTES)
        self._quiet_s = float(config.get("quiet_s", _QUIET_S))
        self._held: OrderedDict[Key, Partition] = OrderedDict()
        self._changed: dict[Key, float] = {}
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._disk = threading.Lock()
        threading.Thread(target=self._background, name="builder", daemon=True).start()

    # -- requests -----------------------------------------------------------------------------------------------------

    def search(self, key: Key, generation: int, k: int, vector: bytes) -> list[tuple[str, float]] | None:
        """See `Backend.search`."""
        partition = self._held.get(key)
        if partition is None:
            partition = self._load(key, generation)
        if partition is None or partition.generation is None or partition.generation < generation:
            return None
        self._held.move_to_end(key)
        return partition.search(vector, k)

    def compare(self, key: Key, rows: Sequence[tuple[str, str]]) -> list[str]:
        """See `Backend.compare`."""
        partition = self._held.get(key) or self._load(key, None)
        if partition is None:
            partition = self._held[key] = Partition(key.dimensions)
        partition.generation = None
        dropped, missing = partition.keep(rows)
        if dropped:
            self._unsave(key)
        return missing

    def put(self, key: Key, rows: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Backend.put`."""
        refused = self._held[key].add(rows) if key in self._held else 0
        if refused:
            logger.error("%d vectors that are not finite or not of length 1 were left out", refused)

    def commit(self, key: Key, generation: int) -> None:
        """See `Backend.commit`."""
        partition = self._held.get(key)
        if partition is None:
            return
        partition.generation = generation
        partition.shrink()
        self._held.move_to_end(key)
        self._changed[key] = time.monotonic()
        if partition.wants_index():
            self._build(partition)
        self._evict()

    def purge(self, key: Key) -> bool:
        """See `Backend.purge`. Rows leave memory and files with `compare`; what is left are the collection's other spaces."""
        own = place(self._folder, key)
        for other in [
            each for each in self._held if (each.user, each.collection) == (key.user, key.collection) and each != key
        ]:
            self._drop(other)
        with self._disk:
            for stem in stems(self._folder, key.user, key.collection):
                if stem != own:
                    remove(stem)
            if key not in self._held or not self._held[key].saved:  # what lies there, if anything, is older
                remove(own)
        return True

    def forget(self, user: str, collection: str | None) -> None:
        """See `Backend.forget`."""
        for key in [each for each in self._held if each.user == user and collection in {None, each.collection}]:
            self._drop(key)
        with self._disk:
            for stem in stems(self._folder, user, collection):
                remove(stem)

    def counts(self) -> Counts:
        """See `Counts`; ``bytes`` in memory, ``approximate``: how many have an approximate index, ``saved``: how many files."""
        held = list(self._held.values())
        return Counts(
            partitions=len(held),
            rows=sum(map(len, held)),
            building=sum(each.building for each in held),
            more={
                "bytes": sum(each.size_bytes for each in held),
                "approximate": sum(each.approximate for each in held),
                "saved": sum(each.saved for each in held),
            },
        )

    def idle(self) -> None:
        """Saves what has not changed for a while."""
        now = time.monotonic()
        for key, since in list(self._changed.items()):
            if now - since >= self._quiet_s:
                del self._changed[key]
                partition = self._held.get(key)
                if partition is not None and not partition.saved:
                    self._work.put(lambda key=key, partition=partition: self._save(key, partition))  # type: ignore[misc]

    # -- memory and disk ----------------------------------------------------------------------------------------------

    def _load(self, key: Key, generation: int | None) -> Partition | None:
        """From its file into memory. A file of another generation must be compared first."""
        with self._disk:
            found = files.read(place(self._folder, key), key.dimensions)
        if found is None:
            return None
        partition = Partition(key.dimensions)
        partition.restore(found[1], found[2])
        partition.saved = True
        partition.generation = generation if found[0] == generation else None
        self._held[key] = partition  # as the last: it stays
        if partition.wants_index():
            self._build(partition)
        self._evict()
        return partition

    def _evict(self) -> None:
        """The least recently used leave until the rest fits; the last used stays, however large."""
        total = sum(each.size_bytes for each in self._held.values())
        while total > self._bytes and len(self._held) > 1:
            key, partition = next(iter(self._held.items()))
            total -= partition.size_bytes
            self._drop(key)

    def _drop(self, key: Key) -> None:
        del self._held[key]
        self._changed.pop(key, None)

    def _unsave(self, key: Key) -> None:
        """What was deleted shall not stay on disk, not even until the next save. Searches go on where the disk refuses."""
        try:
            with self._disk:
                remove(place(self._folder, key))
        except OSError as error:
            logger.error("a saved index of vectors could not be removed (%s)", error.strerror)

    def _save(self, key: Key, partition: Partition) -> None:
        with self._disk:
            if self._held.get(key) is not partition:  # it left meanwhile, or was forgotten: nothing of it may come back
                return
            with partition.lock:
                generation, rows = partition.generation, list(partition.rows)
                matrix = partition.matrix[: len(rows)].copy()
            if generation is None or not rows:
                return
            files.write(place(self._folder, key), generation, rows, matrix)
            with partition.lock:
                # Changed meanwhile: the file holds what may have been deleted.
                partition.saved = partition.generation == generation
            if not partition.saved:
                remove(place(self._folder, key))

    # -- the second thread --------------------------------------------------------------------------------------------

    def _build(self, partition: Partition) -> None:
        partition.building = True

        def work() -> None:
            try:
                partition.build()
            finally:
                partition.building = False

        self._work.put(work)

    def _background(self) -> None:
        with contextlib.suppress(OSError):
            os.nice(_NICE)  # of this thread alone, on Linux
        while True:
            try:
                self._work.get()()
            except (OSError, RuntimeError, MemoryError) as error:
                logger.warning("work in the background failed: %s", type(error).__name__)
