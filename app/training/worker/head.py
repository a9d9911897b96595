"""Log-probabilities of labels from hidden states through the language model's head, in pieces small enough for the cache.

d logp_i / d h_i = W[y_i] - sum_j p_ij W[j] does not depend on the loss, so it is computed while the probabilities are at hand:
the backward pass is one multiplication. Only weights of the head itself (full tuning, untied or tied) need them again.
"""

from __future__ import annotations

from typing import Any, Final

import torch

_ROWS: Final = {"cpu": 128}
"""Labels computed at once, by device: 128 x 49,152 logits in float32 are 25 MB."""
_MANY_ROWS: Final = 2048


def label_logprobs(hidden: Any, labels: Any, weight: Any, *, slope: bool) -> tuple[Any, Any]:
    """Log-probabilities [L] (float32) and their slopes d logp / d hidden [L, D] (None unless ``slope``).

    Args:
        hidden: [L, D]. labels: int64 [L]. weight: [V, D].
    """
    logprobs = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    slopes = torch.empty_like(hidden) if slope else None
    step = _ROWS.get(hidden.device.type, _MANY_ROWS)
    for begin in range(0, len(labels), step):
        rows, wanted = hidden[begin : begin + step], labels[begin : begin + step]
        logits = _logits(rows, weight)
        logprobs[begin : begin + step] = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
        if slopes is None:
            logprobs[begin : begin + step] -= torch.logsumexp(logits, 1)
            continue
        top = logits.amax(1, keepdim=True)
        shares = logits.sub_(top).exp_()
        sums = shares.sum(1, keepdim=True)
        logprobs[begin : begin + step] -= (top + sums.log()).squeeze(1)
        mean = torch.mm(shares.to(weight.dtype), weight)
        torch.sub(weight[wanted], mean.div_(sums), out=slopes[begin : begin + step])
    return logprobs, slopes


def add_head_grads(grad: Any, hidden: Any, labels: Any, weight: Any, total: Any) -> None:
    """Adds to ``total`` [V, D] the gradient of the head's weights, given that of the log-probabilities, ``grad`` [L]."""
    step = _ROWS.get(hidden.device.type, _MANY_ROWS)
    for begin in range(0, len(labels), step):
        rows, wanted, given = (each[begin : begin + step] for each in (hidden, labels, grad))
        shares = torch.softmax(_logits(rows, weight), 1)
        shares.mul_(-given.unsqueeze(1))
        shares[torch.arange(len(wanted), device=shares.device), wanted] += given
        total.add_(torch.mm(shares.to(rows.dtype).t(), rows))


def _logits(rows: Any, weight: Any) -> Any:
    return torch.mm(rows, weight.t()).float()
