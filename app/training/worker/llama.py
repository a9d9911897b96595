"""Forward and backward of Llama-type models by hand, on packed batches.

No autograd: each step keeps just what its backward needs, works in place, adds gradients of the trained weights straight into
a worker's buffer, and leaves out what nobody asks for (logits without a label, the input gradient of the first layer).
The residual stream is float32; matrix products run in the number type of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from app.training.worker.attention import BlockAttention, FusedAttention
from app.training.worker.batch import Batch
from app.training.worker.head import add_head_grads, label_logprobs
from app.training.worker.shape import Shape
from app.training.worker.weights import Grads, Layer, Weights


@dataclass(slots=True)
class _Kept:
    """What one layer's backward needs. ``qkv``, ``gate_up``: outputs after rotation, and low-rank activations."""

    x: Any
    qkv: Any
    heads: Any
    o_low: Any
    middle: Any
    gate_up: Any
    down_low: Any
    raw_qk: Any
    masks: dict[str, Any]


@dataclass(slots=True)
class Tape:
    """One forward pass, to be led back once. ``logprobs``: float32 [L]."""

    logprobs: Any
    slopes: Any
    hidden: Any
    before_norm: Any
    index: Any
    labels: Any
    kept: list[_Kept]
    turn: Any
    attention: Any
    tokens: Any


class Dropout:
    """Dropout of the adapters' inputs, the same masks for the same ``seed``. One mask serves all layers that share an input."""

    def __init__(self, share: float, seed: int, device: Any) -> None:
        self._share = share
        self._generator = torch.Generator(device).manual_seed(seed)

    def mask(self, like: Any) -> Any:
        """Zeros and 1 / (1 - share)."""
        mask = torch.empty_like(like).bernoulli_(1 - self._share, generator=self._generator)
        return mask.div_(1 - self._share)


class Llama:
    """The arithmetic of one model. Knows no optimizer; any number of threads may use it, each with its own tape and buffers."""

    def __init__(self, shape: Shape, weights: Weights, inverse: Any, factor: float) -> None:
        self.shape, self.weights = shape, weights
        self._dtype = weights.embedding.dtype
        self._device = weights.embedding.device
        self._inverse, self._factor = inverse.to(self._device), factor
        self.fused = self._device.type != "cpu"
        """Whether attention runs in torch's fused kernels."""

    def forward(self, batch: Batch, *, adapter: bool, keep: bool, dropout: Dropout | None = None) -> Tape:
        """Log-probabilities of the batch's labels. ``keep``: for `backward`. The batch is on the model's device."""
        attention = FusedAttention(batch, self._device) if self.fused else BlockAttention(batch, self._dtype)
        turn = self._turn(batch.positions)
        x = self.weights.embedding[batch.tokens].float()
        kept: list[_Kept] = []
        for number, layer in enumerate(self.weights.layers):
            x, memory = self._layer(number, layer, x, turn, attention, adapter, dropout if adapter else None)
            if keep:
                kept.append(memory)
            del memory
        # Sequences that share a beginning share the labels in it.
        pairs, where = torch.unique(batch.label_index * self.shape.vocabulary + batch.labels, return_inverse=True)
        index, labels = pairs // self.shape.vocabulary, pairs % self.shape.vocabulary
        last = x[index]
        hidden = self._norm(last, self.weights.norm)
        logprobs, slopes = label_logprobs(hidden, labels, self.weights.head, slope=keep)
        return Tape(logprobs[where], slopes, hidden, last, (index, where), labels, kept, turn, attention, batch.tokens)

    def backward(self, tape: Tape, grad: Any, into: Grads) -> None:
        """Adds to ``into`` the gradients of the trained weights, given that of the log-probabilities, float32 [L]."""
        index, where = tape.index
        grad = torch.zeros(len(tape.labels), device=grad.device).index_add_(0, where, grad)
        weights = self.weights
        if into.head is not None:
            add_head_grads(grad, tape.hidden, tape.labels, weights.head, into.head)
        dx = torch.zeros(len(tape.tokens), self.shape.width, device=grad.device)
        outer = tape.slopes.float().mul_(grad.unsqueeze(1))
        final = torch.zeros_like(tape.before_norm)
        self._norm_back(outer, tape.before_norm, weights.norm, final, into.norm)
        dx.index_add_(0, index, final)
        for number in reversed(range(self.shape.layers)):
            self._layer_back(number, tape, tape.kept.pop(), dx, into)
        if into.embedding is not None:
            into.embedding.index_add_(0, tape.tokens, dx)

    def _layer(
        self, number: int, layer: Layer, x: Any, turn: Any, attention: Any, adapter: bool, dropout: Dropout | None
    ) -> tuple[Any, _Kept]:
        masks: dict[str, Any] = {}

        def linear(group: str, value: Any) -> Any:
            dropped = None
            if dropout is not None:
                masks[group] = dropout.mask(value)
                dropped = value * masks[group]
            return layer.linear[group].forward(value, adapter=adapter, dropped=dropped)

        width, q_width = self.shape.width, self.shape.qkv[0]
        qkv = linear("qkv", self._norm(x, layer.norms["input_layernorm"]))
        q, k, v = self._heads(qkv)
        raw = self._normed_heads(layer, q, k)
        if self.shape.rotary[number]:
            _rotate(q, turn, 1)
            _rotate(k, turn, 1)
        heads = attention.forward(q, k, v, self.shape.windows[number]).reshape(-1, q_width)
        o = linear("o", heads)
        middle = x + o[:, :width]
        gate_up = linear("gate_up", self._norm(middle, layer.norms["post_attention_layernorm"]))
        down = linear("down", self._act(gate_up))
        kept = _Kept(x, qkv, heads, o[:, width:].clone(), middle, gate_up, down[:, width:].clone(), raw, masks)
        return middle + down[:, :width], kept

    def _layer_back(self, number: int, tape: Tape, kept: _Kept, dx: Any, into: Grads) -> None:
        """``dx``, the gradient of the layer's output, becomes that of its input."""
        layer, grads = self.weights.layers[number], into.linear[number]
        norms = into.norms[number] if into.norms else {}

        def back(group: str, grad: Any, value: Any, low: Any, *, to_input: bool = True) -> Any:
            linear, mask = layer.linear[group], kept.masks.get(group)
            return linear.backward(grad, value, low, grads[group], mask=mask, to_input=to_input)

        inner_width = self.shape.inner
        gate, up = kept.gate_up[:, :inner_width], kept.gate_up[:, inner_width : 2 * inner_width]
        lit = functional.silu(gate)
        d_act = back("down", self._widened(dx, layer, "down"), lit * up, kept.down_low)
        d_gate_up = torch.empty_like(kept.gate_up)
        torch.mul(d_act, lit, out=d_gate_up[:, inner_width : 2 * inner_width])
        torch.ops.aten.silu_backward.grad_input(d_act.mul_(up), gate, grad_input=d_gate_up[:, :inner_width])
        del lit, d_act
        inner = self._norm(kept.middle, layer.norms["post_attention_layernorm"])
        d_inner = back("gate_up", d_gate_up, inner, kept.gate_up[:, 2 * inner_width :])
        weight = layer.norms["post_attention_layernorm"]
        self._norm_back(d_inner, kept.middle, weight, dx, norms.get("post_attention_layernorm"))
        d_heads = back("o", self._widened(dx, layer, "o"), kept.heads, kept.o_low)
        d_qkv = torch.empty_like(kept.qkv)
        targets = self._heads(d_qkv)
        q, k, v = self._heads(kept.qkv)
        d_heads = d_heads.view(-1, self.shape.heads, self.shape.head)
        tape.attention.backward(d_heads, q, k, v, self.shape.windows[number], targets)
        if self.shape.rotary[number]:
            _rotate(targets[0], tape.turn, -1)
            _rotate(targets[1], tape.turn, -1)
        self._normed_heads_back(layer, kept.raw_qk, targets, norms)
        first = number == 0 and into.embedding is None
        outer = self._norm(kept.x, layer.norms["input_layernorm"])
        d_outer = back("qkv", d_qkv, outer, kept.qkv[:, sum(self.shape.qkv) :], to_input=not first)
        if not first:
            self._norm_back(d_outer, kept.x, layer.norms["input_layernorm"], dx, norms.get("input_layernorm"))

    def _widened(self, dx: Any, layer: Layer, group: str) -> Any:
        """``dx`` in the number type of the matrix products, with room for the gradients of the low-rank activations."""
        wide = torch.empty(len(dx), layer.linear[group].width, dtype=self._dtype, device=dx.device)
        wide[:, : self.shape.width].copy_(dx)
        return wide

    def _heads(self, qkv: Any) -> tuple[Any, Any, Any]:
        """Views [T, heads, head] of q, k and v."""
        q, k, v = qkv[:, : sum(self.shape.qkv)].split(self.shape.qkv, 1)
        size = self.shape.head
        return q.unflatten(1, (-1, size)), k.unflatten(1, (-1, size)), v.unflatten(1, (-1, size))

    def _norm(self, x: Any, weight: Any) -> Any:
        """RMSNorm of float32 [.., D] in the number type of the matrix products."""
        return (x * self._inverse_rms(x)).mul_(weight).to(self._dtype)

    def _inverse_rms(self, x: Any) -> Any:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return size.square_().div_(x.shape[-1]).add_(self.shape.epsilon).rsqrt_()

    def _norm_back(self, grad: Any, x: Any, weight: Any, total: Any, into: Any) -> None:
        """Adds the gradient of x to ``total`` and that of ``weight`` to ``into`` (None: it is frozen)."""
        grad = grad.float()
        inverse = self._inverse_rms(x)
        if into is not None:
            into.add_((grad * x * inverse).flatten(0, -2).sum(0))
        grad = grad * weight
        along = (grad * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
        total.addcmul_(grad, inverse).addcmul_(x, along)

    def _normed_heads(self, layer: Layer, q: Any, k: Any) -> Any:
        """Qwen3's norm of each head, in place; returns what q and k were."""
        if not self.shape.qk_norm:
            return None
        raw = (q.float().clone(), k.float().clone())
        q.copy_(self._norm(raw[0], layer.norms["self_attn.q_norm"]))
        k.copy_(self._norm(raw[1], layer.norms["self_attn.k_norm"]))
        return raw

    def _normed_heads_back(self, layer: Layer, raw: Any, targets: tuple[Any, Any, Any], norms: dict[str, Any]) -> None:
        if raw is None:
            return
        for name, value, target in zip(("self_attn.q_norm", "self_attn.k_norm"), raw, targets, strict=False):
            total = torch.zeros_like(value)
            self._norm_back(target, value, layer.norms[name], total, norms.get(name))
            target.copy_(total)

    def _act(self, gate_up: Any) -> Any:
        inner = self.shape.inner
        return functional.silu(gate_up[:, :inner]).mul_(gate_up[:, inner : 2 * inner])

    def _turn(self, positions: Any) -> tuple[Any, Any]:
        angles = positions.unsqueeze(1).float() * self._inverse
        cosine, sine = angles.cos().mul_(self._factor), angles.sin().mul_(self._factor)
        return cosine.unsqueeze(1).to(self._dtype), sine.unsqueeze(1).to(self._dtype)


def _rotate(x: Any, turn: tuple[Any, Any], direction: int) -> None:
    """Turns the halves of [T, heads, head] in place; ``direction`` -1 leads a gradient back."""
    cosine, sine = turn
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    old = first.clone()
    first.mul_(cosine).addcmul_(second, sine, value=-direction)
    second.mul_(cosine).addcmul_(old, sine, value=direction)
