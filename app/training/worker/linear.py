"""Linear layers that share their input (q, k, v; gate, up), as one matrix product with their LoRA matrices, by hand.

Their weights lie under each other in one matrix, and under them the A matrices of their adapters: one product gives outputs
and low-rank activations at once, and one product leads both back to the input. Not a torch module: forward and backward are
plain functions, and gradients go into buffers of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Joined:
    """Layers with one input of width K and outputs of widths ``sizes``; N is their sum, R the sum of their ranks.

    Attributes:
        weight: [N + R, K] in the number type of the computation; the last R rows are the A matrices (R = 0: no adapter).
        bias: [N] or None.
        b: for each layer its B matrix [size, rank], already times alpha / rank.
    """

    def __init__(self, weight: Any, sizes: Sequence[int], rank: int, bias: Any = None) -> None:
        self.weight = weight
        self.sizes = tuple(sizes)
        self.rank = rank
        self.out = sum(sizes)
        self.bias = bias
        self.b: list[Any] = []

    @property
    def width(self) -> int:
        """N + R: the columns of `forward` and of the buffer for `backward`."""
        return int(self.weight.shape[0])

    def parts(self, joined: Any) -> list[tuple[Any, Any]]:
        """For each layer its columns of [T, N + R] and those of its low-rank activations."""
        pieces, at, low = [], 0, self.out
        for size in self.sizes:
            pieces.append((joined[:, at : at + size], joined[:, low : low + self.rank]))
            at, low = at + size, low + self.rank
        return pieces

    def forward(self, x: Any, *, adapter: bool, dropped: Any = None) -> Any:
        """x [T, K] → [T, N + R] (outputs, then low-rank activations), or [T, N] without adapter.

        ``dropped``: what the adapter sees instead of x.
        """
        if not adapter or not self.rank:
            joined = torch.mm(x, self.weight[: self.out].t())
        elif dropped is None:
            joined = torch.mm(x, self.weight.t())
        else:
            joined = torch.empty(len(x), self.width, dtype=x.dtype, device=x.device)
            torch.mm(x, self.weight[: self.out].t(), out=joined[:, : self.out])
            torch.mm(dropped, self.weight[self.out :].t(), out=joined[:, self.out :])
        if self.bias is not None:
            joined[:, : self.out].add_(self.bias)
        if adapter and self.rank:
            for (output, low), b in zip(self.parts(joined), self.b, strict=True):
                output.addmm_(low, b.t())
        return joined

    def backward(self, grad: Any, x: Any, low: Any, into: LinearGrads, *, mask: Any = None, to_input: bool = True) -> Any:
        """Adds this layer's gradients to ``into`` and returns that of its input, [T, K] (None if not ``to_input``).

        Args:
            grad: [T, N + R], its first N columns the gradient of the outputs; the rest is overwritten.
            x: [T, K], the input of `forward`; low: [T, R], its low-rank activations.
            mask: [T, K], what the adapter's input was multiplied by (dropout), or None.
        """
        if into.weight is not None:
            _accumulate(into.weight, grad, x)
            if into.bias is not None:
                into.bias.add_(grad.sum(0))
        if self.rank:
            at = 0
            for (output, back), b, gradient in zip(self.parts(grad), self.b, into.b, strict=True):
                torch.mm(output, b, out=back)
                _accumulate(gradient, output, low[:, at : at + self.rank], into.scale)
                at += self.rank
            _accumulate(into.a, grad[:, self.out :], x if mask is None else x * mask)
        if not to_input:
            return None
        if mask is None or not self.rank:
            return torch.mm(grad, self.weight)
        back = torch.mm(grad[:, : self.out], self.weight[: self.out])
        return back.addcmul_(torch.mm(grad[:, self.out :], self.weight[self.out :]), mask)


class LinearGrads:
    """Where a `Joined` puts its gradients: float32 views of the worker's flat buffer."""

    def __init__(
        self, *, a: Any = None, b: Sequence[Any] = (), scale: float = 1.0, weight: Any = None, bias: Any = None
    ) -> None:
        self.a = a
        self.b = tuple(b)
        self.scale = scale
        self.weight = weight
        self.bias = bias


def _accumulate(total: Any, left: Any, right: Any, scale: float = 1.0) -> None:
    """``total += scale * leftᵀ right``, whatever number type the factors have."""
    if total.dtype == left.dtype:
        total.addmm_(left.t(), right, alpha=scale)
    else:
        total.add_(torch.mm(left.t(), right), alpha=scale)
