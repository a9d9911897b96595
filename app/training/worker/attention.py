"""Causal attention over the segments of a packed batch, forward and backward by hand.

On a CPU, two plain matrix products and a softmax beat torch's fused attention, whose bfloat16 backward is slow for the short
sequences that people rate. Nothing is kept for the backward: the softmax is computed again, in blocks, so memory stays linear.
On other devices the fused attention of torch does the same with one mask for the whole batch (`FusedAttention`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

from app.training.worker.batch import Batch

_BLOCK: Final = 128
"""Queries computed at once: a block sees no keys after its own end."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A block of queries (rows ``begin`` to ``end``) and the rows of its keys in order, the last of them the block's own."""

    begin: int
    end: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def keys(self) -> int:
        return sum(end - begin for begin, end in self.ranges)


def _pieces(batch: Batch) -> Iterator[_Piece]:
    starts = batch.starts()
    for segment, length in enumerate(batch.lengths):
        start = starts[segment]
        before = tuple((starts[each], starts[each] + batch.lengths[each]) for each in batch.path(segment)[:-1])
        for begin in range(start, start + length, _BLOCK):
            end = min(begin + _BLOCK, start + length)
            yield _Piece(begin, end, _merged((*before, (start, end))))


def _merged(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    merged = [ranges[0]]
    for begin, end in ranges[1:]:
        if merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return tuple(merged)


class BlockAttention:
    """Attention of one batch, used by each of its layers in turn. ``window``: keys so far back are not seen (None: all are)."""

    def __init__(self, batch: Batch, dtype: Any) -> None:
        self._pieces = list(_pieces(batch))
        self._dtype = dtype
        self._masks: dict[tuple[int, int, int | None], Any] = {}

    def forward(self, q: Any, k: Any, v: Any, window: int | None) -> Any:
        """q [T, H, d], k and v [T, K, d] with H a multiple of K: the answer [T, H, d]."""
        out = torch.empty(q.shape, dtype=q.dtype)
        for piece in self._pieces:
            weights, _, values, _ = self._weights(piece, q, k, v, window)
            own = out[piece.begin : piece.end]
            _spread(own, k.shape[1]).copy_(torch.bmm(weights, values).view(k.shape[1], -1, len(own), q.shape[2]))
        return out

    def backward(self, grad: Any, q: Any, k: Any, v: Any, window: int | None, into: tuple[Any, Any, Any]) -> None:
        """Writes the gradients of q, k and v into ``into``, given that of the answer."""
        dq, dk, dv = into
        dk.zero_()
        dv.zero_()
        heads, scale = k.shape[1], 1 / math.sqrt(q.shape[2])
        for piece in self._pieces:
            weights, keys, values, queries = self._weights(piece, q, k, v, window)
            given = _grouped(grad[piece.begin : piece.end], heads)
            _add(dv, piece, torch.bmm(weights.transpose(1, 2), given))
            slope = torch.bmm(given, values.transpose(1, 2))
            slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype)
            _add(dk, piece, torch.bmm(slope.transpose(1, 2), queries))
            own = dq[piece.begin : piece.end]
            _spread(own, heads).copy_(torch.bmm(slope, keys).mul_(scale).view(heads, -1, len(own), q.shape[2]))

    def _weights(self, piece: _Piece, q: Any, k: Any, v: Any, window: int | None) -> tuple[Any, Any, Any, Any]:
        """The softmax [K, g·n, m], keys and values [K, m, d], and the scaled queries [K, g·n, d]."""
        heads = k.shape[1]
        queries = _grouped(q[piece.begin : piece.end], heads).mul_(1 / math.sqrt(q.shape[2]))
        keys, values = _gathered(k, piece), _gathered(v, piece)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        count = piece.end - piece.begin
        mask = self._mask(count, piece.keys, window)
        scores.view(heads, -1, count, piece.keys)[..., -mask.shape[1] :].add_(mask)
        return torch.softmax(scores, -1), keys, values, queries

    def _mask(self, count: int, keys: int, window: int | None) -> Any:
        """What to add to the scores of the last keys: with a window to those of all keys."""
        reach = count if window is None else keys
        key = (count, reach, window)
        if key not in self._masks:
            distance = torch.arange(reach - count, reach).unsqueeze(1) - torch.arange(reach)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(count, reach, dtype=self._dtype).masked_fill_(hidden, -math.inf)
            self._masks[key] = mask
        return self._masks[key]


def _spread(rows: Any, heads: int) -> Any:
    """[n, H, d] seen as [K, H/K, n, d]."""
    return rows.view(rows.shape[0], heads, -1, rows.shape[2]).permute(1, 2, 0, 3)


def _grouped(rows: Any, heads: int) -> Any:
    """[n, H, d] copied to [K, H/K·n, d]: queries that share their keys under each other."""
    spread = _spread(rows, heads)
    return spread.clone(memory_format=torch.contiguous_format).view(heads, -1, rows.shape[2])


def _gathered(rows: Any, piece: _Piece) -> Any:
    """The piece's rows of [T, K, d] as [K, m, d]."""
    parts = [rows[begin:end] for begin, end in piece.ranges]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)


def _add(total: Any, piece: _Piece, part: Any) -> None:
    """Adds [K, m, d] to the piece's rows of [T, K, d]."""
    at = 0
    part = part.transpose(0, 1)
    for begin, end in piece.ranges:
        total[begin:end].add_(part[at : at + end - begin])
        at += end - begin


class FusedAttention:
    """The same through torch's scaled dot product with a mask [T, T]: few large operations, for devices that like those."""

    def __init__(self, batch: Batch, device: Any) -> None:
        seen = torch.zeros(len(batch.tokens), len(batch.tokens), dtype=torch.bool)
        starts = batch.starts()
        for segment, (start, length) in enumerate(zip(starts, batch.lengths, strict=True)):
            own = slice(start, start + length)
            for each in batch.path(segment)[:-1]:
                seen[own, starts[each] : starts[each] + batch.lengths[each]] = True
            seen[own, own] = torch.ones(length, length, dtype=torch.bool).tril_()
        self._positions = batch.positions.to(device=device, dtype=torch.int32)
        self._masks: dict[int | None, Any] = {None: seen.to(device)}

    def forward(self, q: Any, k: Any, v: Any, window: int | None) -> Any:
        return self._attend(q, k, v, window)

    def backward(self, grad: Any, q: Any, k: Any, v: Any, window: int | None, into: tuple[Any, Any, Any]) -> None:
        leaves = [each.detach().requires_grad_() for each in (q, k, v)]
        with torch.enable_grad():
            out = self._attend(leaves[0], leaves[1], leaves[2], window)
        for target, value in zip(into, torch.autograd.grad(out, leaves, grad), strict=True):
            target.copy_(value)

    def _attend(self, q: Any, k: Any, v: Any, window: int | None) -> Any:
        if window not in self._masks:
            near = self._positions.unsqueeze(1) - self._positions < window
            self._masks[window] = self._masks[None] & near
        mask = self._masks[window]
        times = q.shape[1] // k.shape[1]
        wide = (q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))
        queries, keys, values = (each.transpose(0, 1).unsqueeze(0) for each in wide)
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return out.squeeze(0).transpose(0, 1)
