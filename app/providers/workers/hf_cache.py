"""The keys and values of all running answers in one buffer a layer, so that rows can come and go between two steps.

Every row ends at the same column, `end`; a shorter row begins further right (left padding), and the attention mask hides what
lies before its first column. That is the one layout that every decoder of transformers understands, sliding windows included,
because the distance between two columns is the distance between two tokens. Nothing is concatenated a step: a new token is
written in place, a new row is written beside the others, a leaving row is overwritten by the last one. Columns that no row uses
any more are reclaimed when the buffer is full.

Holds tensors only; which row belongs to whom is `hf_batch`'s business. Only plain attention layers fit in here.
"""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_COLUMNS = 256
"""Columns are reserved in multiples of this."""


def batchable(config: Any) -> bool:
    """Whether every layer of this model keeps plain keys and values; recurrent and other states cannot be padded or merged."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's buffers, ``[rows, heads, columns, size]``. What the model sees is the part from ``start`` to ``end``."""

    keys: Any
    values: Any
    is_initialized: bool

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.start = self.end = 0

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> tuple[Any, Any]:
        """Writes the new column of all rows in place."""
        columns = slice(self.end, self.end + key_states.shape[-2])
        self.keys[: self.rows, :, columns] = key_states
        self.values[: self.rows, :, columns] = value_states
        seen = slice(self.start, columns.stop)
        return self.keys[: self.rows, :, seen], self.values[: self.rows, :, seen]

    def get_seq_length(self) -> int:
        """Columns that the model has seen."""
        return self.end - self.start

    def place(self, capacity: int, columns: int, to: int) -> None:
        """Gives the buffers this size and moves what they hold so that it ends at column ``to``."""
        if self.is_initialized:
            self.keys, self.values = (self._placed(buffer, capacity, columns, to) for buffer in (self.keys, self.values))

    def _placed(self, buffer: Any, capacity: int, columns: int, to: int) -> Any:
        held = buffer[: self.rows, :, self.start : self.end]
        if (buffer.shape[0], buffer.shape[2]) != (capacity, columns):
            buffer = _zeros(buffer, capacity, columns)
        elif to == self.end:
            return buffer
        else:
            held = held.clone()  # source and target may overlap
        buffer[: self.rows, :, to - held.shape[2] : to] = held
        return buffer

    def adopt(self, keys: Any, values: Any, capacity: int, columns: int, width: int) -> None:
        """Writes new rows behind the present ones, their last ``width`` columns ending at ``end``."""
        if not self.is_initialized:
            self.keys, self.values = _zeros(keys, capacity, columns), _zeros(values, capacity, columns)
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        rows, target = slice(self.rows, self.rows + keys.shape[0]), slice(self.end - width, self.end)
        self.keys[rows, :, target] = keys[:, :, -width:]
        self.values[rows, :, target] = values[:, :, -width:]

    def move(self, source: int, target: int) -> None:
        """Overwrites row ``target`` with row ``source``."""
        if self.is_initialized:
            for buffer in (self.keys, self.values):
                buffer[target, :, self.start : self.end] = buffer[source, :, self.start : self.end]


def _zeros(like: Any, capacity: int, columns: int) -> Any:
    # Zeros, not garbage: a masked column has weight 0, and 0 times a stray NaN would still be NaN.
    return like.new_zeros((capacity, like.shape[1], columns, like.shape[3]))


class RowCache(Cache):  # type: ignore[misc]
    """The cache that the model is given at each decoding step; ``first[i]`` is the first column of row ``i``."""

    def __init__(self, *, most_rows: int) -> None:
        super().__init__(layers=[])
        self._most_rows = most_rows
        self._capacity = self._columns = 0
        self.end = 0
        self.first: list[int] = []

    @property
    def width(self) -> int:
        """Columns from the longest row's first to the end."""
        return self.end - min(self.first, default=self.end)

    def join(self, other: Any, lengths: list[int]) -> None:
        """Takes the rows of a prefilled ``DynamicCache``, left-padded to its width, with so many real columns each."""
        width = max(lengths)
        self._arrange(rows=len(self.first) + len(lengths), width=width)
        while len(self.layers) < len(other.layers):
            self.layers.append(RowLayer())
        self._tell()
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.keys is not None:  # None: a layer that shares another one's keys
                mine.adopt(theirs.keys, theirs.values, self._capacity, self._columns, width)
        self.first += [self.end - length for length in lengths]
        self._tell()

    def prepare(self) -> None:
        """Makes sure that the next step has a free column. To be called before each step."""
        self._arrange(rows=len(self.first), width=0)
        self._tell()

    def advance(self) -> None:
        """Counts the column that a step has written."""
        self.end += 1
        self._tell()

    def remove(self, row: int) -> None:
        """Drops a row; the last one takes its place, and its number."""
        last = len(self.first) - 1
        if row != last:
            for layer in self.layers:
                layer.move(last, row)
            self.first[row] = self.first[last]
        self.first.pop()
        self._tell()
        if not self.first:
            self.layers.clear()
            self._capacity = self._columns = self.end = 0

    def _arrange(self, *, rows: int, width: int) -> None:
        """Finds a place where the present columns and ``width`` new ones end together, with a free column behind them."""
        end, columns = max(self.end, width), self._columns
        if end >= columns:
            end = max(self.width, width)  # what lies before the longest row's first column is free again
            if end + _COLUMNS // 2 > columns:
                columns = (end + max(_COLUMNS, end // 4)) // _COLUMNS * _COLUMNS + _COLUMNS
        capacity = self._capacity if rows <= self._capacity else min(self._most_rows, max(rows, 2 * self._capacity))
        if (end, columns, capacity) == (self.end, self._columns, self._capacity):
            return
        for layer in self.layers:
            layer.place(capacity, columns, end)
        self.first = [first + end - self.end for first in self.first]
        self.end, self._columns, self._capacity = end, columns, capacity

    def _tell(self) -> None:
        start = self.end - self.width
        for layer in self.layers:
            layer.rows, layer.start, layer.end = len(self.first), start, self.end
