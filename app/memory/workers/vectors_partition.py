"""One partition in memory: its rows, exact search over them, and for large ones an approximate index whose finds are rescored.

Exact scores decide in both ways, so equal vectors score equally and ties go by id. Runs in the child only. It touches no file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

import faiss
import numpy as np

from app.memory.workers.vectors_rows import best, sound

FLAT_ROWS: Final = 20_000
"""Up to here exact search is fast enough: 2 ms at 384 dimensions."""
_TIE = 1e-6
_SPARE = 16
_SEED = 7
_MIN_CAPACITY = 64
_STEP_ROWS = 2048
_SAMPLE_QUERIES = 128
_SAMPLE_NOISE = 0.5
_K = 10
_RECALL = 0.975
"""What the build asks of its own sample, so that other queries get 0.95."""

Row = tuple[str, str]
Array = Any


class Partition:
    """Rows with unit vectors. Methods take `lock` where they change or read several things; the builder works beside them."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.lock = threading.RLock()
        self.generation: int | None = None
        """As of the database; None: being changed, or just read from a file."""
        self.saved: bool = False
        """Whether the file on disk holds just these rows."""
        self.matrix: Array = np.zeros((0, dimensions), np.float32)
        self.rows: list[Row] = []
        self._labels: Array = np.zeros(0, np.int64)
        self._slot: dict[str, int] = {}
        self._slot_of_label: dict[int, int] = {}
        self._next_label = 0
        self._index: Any = None
        self._built_rows = 0
        self.building = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return int(self.matrix.nbytes) + len(self.rows) * (350 + (self.dimensions if self._index is not None else 0))

    @property
    def approximate(self) -> bool:
        """Whether searches go through the approximate index."""
        return self._index is not None

    # -- changes ------------------------------------------------------------------------------------------------------

    def keep(self, rows: Iterable[Row]) -> tuple[int, list[str]]:
        """Drops what is not among ``rows``; gives how many that were, and the ids of those that are not there yet."""
        wanted = dict(rows)
        with self.lock:
            gone = [id for id, content in self.rows if wanted.get(id) != content]
            self._remove(gone)
            return len(gone), [id for id in wanted if id not in self._slot]

    def add(self, rows: Sequence[tuple[str, str, bytes]]) -> int:
        """Adds rows, in place of those of the same id; gives how many were refused: not finite, or not of length 1."""
        with self.lock:
            self._remove([id for id, _, _ in rows if id in self._slot])
            good, vectors = sound(rows, self.dimensions)
            self._append(good, vectors)
            return len(rows) - len(good)

    def restore(self, rows: Sequence[Row], matrix: Array) -> None:
        """Takes what a file holds; the partition was empty."""
        with self.lock:
            self._append(rows, matrix)

    def _append(self, rows: Sequence[Row], vectors: Array) -> None:
        count, start = len(rows), len(self.rows)
        self._reserve(start + count)
        labels: Array = np.arange(self._next_label, self._next_label + count, dtype=np.int64)
        self._next_label += count
        self.matrix[start : start + count] = vectors
        self._labels[start : start + count] = labels
        self.rows.extend((id, content) for id, content in rows)
        for slot, (id, _) in enumerate(rows, start):
            self._slot[id] = slot
            self._slot_of_label[int(labels[slot - start])] = slot
        if self._index is not None and count:
            self._index.add_with_ids(np.ascontiguousarray(vectors), labels)
        if count:
            self.saved = False

    def _remove(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        if self._index is not None:
            _discard(self._index, np.array([self._labels[self._slot[id]] for id in ids], np.int64))
        for id in ids:
            self._drop(self._slot.pop(id))
        self.saved = False
        if len(self.rows) < len(self.matrix) // 4:
            self._resize(max(len(self.rows), _MIN_CAPACITY))

    def _drop(self, slot: int) -> None:
        """The last row moves into the slot, and its old place is emptied: nothing deleted stays in memory."""
        last = len(self.rows) - 1
        del self._slot_of_label[int(self._labels[slot])]
        if slot != last:
            self.matrix[slot] = self.matrix[last]
            self._labels[slot] = self._labels[last]
            self.rows[slot] = self.rows[last]
            self._slot[self.rows[slot][0]] = slot
            self._slot_of_label[int(self._labels[slot])] = slot
        self.matrix[last] = 0
        self.rows.pop()

    def _reserve(self, count: int) -> None:
        if count > len(self.matrix):
            self._resize(max(count, len(self.matrix) * 3 // 2, _MIN_CAPACITY))

    def _resize(self, capacity: int) -> None:
        used = len(self.rows)
        matrix: Array = np.zeros((capacity, self.dimensions), np.float32)
        labels: Array = np.zeros(capacity, np.int64)
        matrix[:used], labels[:used] = self.matrix[:used], self._labels[:used]
        self.matrix, self._labels = matrix, labels

    # -- search -------------------------------------------------------------------------------------------------------

    def search(self, vector: bytes, k: int) -> list[tuple[str, float]]:
        """The nearest ``k``, best first, equal scores by id."""
        with self.lock:
            if not self.rows or k <= 0:
                return []
            query = np.frombuffer(vector, "<f4")
            if self._index is not None and k <= len(self.rows) // 100:
                slots = self._near(query, k)
                if len(slots) >= k:
                    return self._best(query, slots, k)
            return self._best(query, self._exact(query, k), k)

    def _near(self, query: Array, k: int) -> Array:
        _, labels = self._index.search(query.reshape(1, -1), max(4 * k, k + 32))
        return np.array([self._slot_of_label[label] for label in labels[0].tolist() if label >= 0], np.int64)

    def _exact(self, query: Array, k: int) -> Array:
        """Slots of the nearest, with all that tie with the last of them."""
        count = len(self.rows)
        wanted = min(count, k + _SPARE)
        while True:
            scores, slots = faiss.knn(query.reshape(1, -1), self.matrix[:count], wanted, metric=faiss.METRIC_INNER_PRODUCT)
            if wanted == count or scores[0][wanted - 1] < scores[0][k - 1] - _TIE:
                return slots[0]
            wanted = min(count, 8 * wanted)

    def _best(self, query: Array, slots: Array, k: int) -> list[tuple[str, float]]:
        return best(query, [self.rows[slot][0] for slot in slots.tolist()], self.matrix[slots], k)

    # -- the approximate index ------------------------------------------------------------------------------------------

    def wants_index(self) -> bool:
        """Whether it has grown (or shrunk) so much that an index should be built, or built anew."""
        count = len(self.rows)
        if self.building or count <= FLAT_ROWS:
            return False
        return self._built_rows == 0 or count > 2 * self._built_rows or count < self._built_rows // 3

    def shrink(self) -> None:
        """Drops the index of a partition that exact search does for."""
        with self.lock:
            if self._index is not None and len(self.rows) <= FLAT_ROWS // 2:
                self._index, self._built_rows = None, 0

    def build(self) -> None:
        """Builds the index beside searches and changes, and takes it over. Runs in the builder's thread."""
        with self.lock:
            labels = self._labels[: len(self.rows)].copy()
            sample = self._sample(labels)
        index = _new_index(self.dimensions, sample, len(labels))
        for start in range(0, len(labels), _STEP_ROWS):
            vectors, there = self._rows_of(labels[start : start + _STEP_ROWS])
            index.add_with_ids(vectors, there)
        probes = self._probes(index, sample)
        with self.lock:
            present = self._labels[: len(self.rows)]
            _discard(index, np.setdiff1d(labels, present))
            vectors, there = self._rows_of(np.setdiff1d(present, labels))
            if len(there):
                index.add_with_ids(vectors, there)
            self._built_rows = len(self.rows)
            # Scattered data may need nearly all lists: then exact search is as fast, and exact.
            self._index = None if probes is None else index
            if probes is not None:
                index.nprobe = probes

    def _rows_of(self, labels: Array) -> tuple[Array, Array]:
        """The vectors of those labels that are still there, and these labels."""
        with self.lock:
            there = [(self._slot_of_label[label], label) for label in labels.tolist() if label in self._slot_of_label]
            slots = np.array([slot for slot, _ in there], np.int64)
            return self.matrix[slots], np.array([label for _, label in there], np.int64)

    def _sample(self, labels: Array) -> Array:
        count = min(len(labels), _lists(len(labels)) * 40)
        slots = np.random.default_rng(_SEED).choice(len(labels), count, replace=False)
        return self.matrix[slots].copy()

    def _probes(self, index: Any, sample: Array) -> int | None:
        """How many lists a search must look into to find enough of what exact search finds; None: too many."""
        rng = np.random.default_rng(_SEED)
        queries = sample[:_SAMPLE_QUERIES]
        # Queries lie beside the rows, not on them; so does the sample.
        noise = rng.standard_normal(queries.shape).astype(np.float32)
        noise *= _SAMPLE_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        queries = np.ascontiguousarray((queries + noise) / np.linalg.norm(queries + noise, axis=1, keepdims=True))
        exact = self._exact_labels(queries)
        probes = 4
        while probes <= index.nlist // 2:
            index.nprobe = probes
            _, found = index.search(queries, 4 * _K)
            if np.mean([len(np.intersect1d(a, b)) / _K for a, b in zip(exact, found, strict=True)]) >= _RECALL:
                return probes
            probes = probes * 5 // 4 + 1
        return None

    def _exact_labels(self, queries: Array) -> list[Array]:
        """The true nearest of each query, one query at a time, so that searches come in between."""
        found: list[Array] = []
        for query in queries:
            with self.lock:
                count = len(self.rows)
                _, slots = faiss.knn(query.reshape(1, -1), self.matrix[:count], _K, metric=faiss.METRIC_INNER_PRODUCT)
                found.append(self._labels[slots[0]].copy())
        return found


def _lists(count: int) -> int:
    return int(2 ** round(np.log2(1.6 * np.sqrt(count))))


def _new_index(dimensions: int, sample: Array, count: int) -> Any:
    """Trained and empty. One byte a dimension: a quarter of the rows' memory, and the finds are rescored with the rows."""
    quantizer = faiss.IndexFlatIP(dimensions)
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, dimensions, _lists(count), kind, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    index.cp.seed = _SEED
    index.cp.max_points_per_centroid = 40
    index.train(sample)
    index.set_direct_map_type(faiss.DirectMap.Hashtable)  # type: ignore[attr-defined]
    return index


def _discard(index: Any, labels: Array) -> None:
    if len(labels):
        labels = np.ascontiguousarray(labels)  # the selector only points to it
        index.remove_ids(faiss.IDSelectorArray(len(labels), faiss.swig_ptr(labels)))
