"""What a run minimises: SFT, DPO and KTO, as TRL 1.16 computes them, on log-probabilities of a packed batch.

A loss is a function ``(batch, logprobs [L]) -> (scalar, statistics)``. An optimizer step is the sum over its micro-batches, so
each factory takes what to divide by for the whole step (over all processes), and the gradients simply add up.
Statistics are sums; divide them by the same number. Not a place for reference passes: `Policy.reference` makes those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from app.training.worker.batch import Batch, Example

Loss = Callable[[Batch, Any], tuple[Any, dict[str, float]]]
"""``(batch, log-probabilities [L]) -> (scalar tensor, sums of statistics by name)``."""


def sft_total(examples: Sequence[Example]) -> float:
    """What `sft` divides by: labels of the step, each with its example's weight."""
    return sum(example.labels * example.weight for example in examples)


def weight_total(examples: Sequence[Example]) -> float:
    """What `dpo` and `kto` divide by. With weights of 1 it is the number of examples, as in TRL."""
    return sum(example.weight for example in examples)


def sft(total: float) -> Loss:
    """Mean negative log-likelihood of the learnt tokens. ``total``: `sft_total` of the step."""

    def loss(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        value = -(logprobs * batch.weights[batch.label_sequence]).sum() / total
        return value, {"logps": float(logprobs.detach().sum())}

    return loss


def dpo(total: float, *, beta: float, label_smoothing: float = 0.0, sft_weight: float = 0.0, chosen_total: float = 1.0) -> Loss:
    """DPO with a sigmoid; sequences are chosen, rejected, chosen, rejected, …

    Args:
        total: `weight_total` of the step.
        label_smoothing: share of preferences taken to be flipped. TRL's option of that name belongs to its loss ``robust``
            (unbiased under flips), and so does this one; it is not the conservative cDPO. 0 gives the plain loss.
        sft_weight: weight of the mean negative log-likelihood of the chosen answers (RPO; TRL: loss ``sft`` with that weight).
        chosen_total: what that mean divides by: learnt tokens of the step's chosen answers, weighted.
    """

    def loss(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        ratios = batch.sums(logprobs) - batch.reference
        chosen, rejected = ratios[0::2], ratios[1::2]
        score = beta * (chosen - rejected)
        each = -functional.logsigmoid(score)
        if label_smoothing:
            flipped = -functional.logsigmoid(-score)
            each = ((1 - label_smoothing) * each - label_smoothing * flipped) / (1 - 2 * label_smoothing)
        value = (each * batch.weights).sum() / total
        if sft_weight:
            of_label = batch.weights[batch.label_sequence // 2] * (batch.label_sequence % 2 == 0)
            value = value - sft_weight * (logprobs * of_label).sum() / chosen_total
        with torch.no_grad():
            weights = batch.weights
            statistics = {
                "rewards/chosen": float((beta * chosen * weights).sum()),
                "rewards/rejected": float((beta * rejected * weights).sum()),
                "rewards/accuracies": float(((score > 0) * weights).sum()),
                "rewards/margins": float((score * weights).sum()),
            }
        return value, statistics

    return loss


def kto(total: float, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Loss:
    """Unpaired ratings against the reference, without a KL pass: TRL's ``apo_zero_unpaired``. ``total``: `weight_total`."""

    def loss(batch: Batch, logprobs: Any) -> tuple[Any, dict[str, float]]:
        rewards = beta * (batch.sums(logprobs) - batch.reference)
        good = batch.desirable
        each = torch.where(good, desirable_weight * torch.sigmoid(-rewards), undesirable_weight * torch.sigmoid(rewards))
        value = (each * batch.weights).sum() / total
        with torch.no_grad():
            weighted = rewards * batch.weights
            statistics = {
                "rewards/chosen": float(weighted[good].sum()),
                "rewards/rejected": float(weighted[~good].sum()),
                "count/chosen": float(batch.weights[good].sum()),
                "count/rejected": float(batch.weights[~good].sum()),
            }
        return value, statistics

    return loss
