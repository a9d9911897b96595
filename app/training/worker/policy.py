"""A model that is being trained: log-probabilities with gradients, and its trained weights. The contract of the trainer's loop.

    policy = open_policy(folder, config=config, threads=2)
    optimizer = torch.optim.AdamW(policy.parameters(), ...)
    batches = policy.split(examples)                      # the examples of one optimizer step
    results = policy.accumulate(batches, loss, seed=step) # sets .grad of policy.parameters()
    reduce_gradients(policy)                              # sums over processes, where there are several
    torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm); optimizer.step()

Not a training loop: it knows no optimizer, no schedule and no files of a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.training.worker.batch import Batch, Example, split
from app.training.worker.losses import Loss


@dataclass(frozen=True, slots=True)
class Result:
    """What one micro-batch gave: its part of the step's loss, and sums of statistics."""

    loss: float
    statistics: dict[str, float]


class Policy(ABC):
    """See the module. One at a time per process; used from one thread."""

    device: Any
    dtype: Any
    """Number type of the matrix products; trained weights are float32 always."""
    batch_tokens: int
    """About how many tokens `split` puts into a batch: bounds the memory for activations."""
    parts: int
    """Micro-batches that are computed at the same time."""

    def split(self, examples: Sequence[Example]) -> list[Batch]:
        """The examples of one optimizer step as micro-batches; the same for the same examples and threads."""
        return split(examples, tokens=self.batch_tokens, parts=self.parts, share=True)

    @abstractmethod
    def parameters(self) -> list[Any]:
        """The trained leaf tensors (float32), for an optimizer. Change them in place only."""

    @abstractmethod
    def trainable(self) -> dict[str, Any]:
        """The trained weights by PEFT's names (full tuning: transformers'). Views of `parameters`: copy into them to resume."""

    @abstractmethod
    def logprobs(self, batch: Batch, *, reference: bool = False) -> Any:
        """Log-probability of each label, float32 [L] on ``device``, differentiable; no dropout.

        ``reference``: of the model without its adapter, without gradient (full tuning: ValueError after the first step).
        """

    @abstractmethod
    def accumulate(self, batches: Sequence[Batch], loss: Loss, *, seed: int = 0) -> list[Result]:
        """Sets the gradients to the sum over ``batches``, bit by bit the same each time (same batches, threads and ``seed``).

        Args:
            batches: of one optimizer step, from `split`.
            loss: called once a batch, in any order, maybe in several threads at once.
            seed: of dropout; give the number of the step.

        Returns:
            A result for each batch, in order. The step's loss is the sum of their losses.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does; full tuning: a transformers folder."""

    def reference(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with `Example.reference` filled in: for LoRA at any time, in full tuning before the first step."""
        found: dict[int, tuple[float, ...]] = {}
        order = [replace(example, number=at) for at, example in enumerate(examples)]
        for batch, values in self._reference(split(order, tokens=self.batch_tokens, parts=self.parts)):
            at = 0
            for number in batch.numbers:
                rows = len(examples[number].rows)
                found[number] = tuple(values[at : at + rows])
                at += rows
        return [replace(example, reference=found[at]) for at, example in enumerate(examples)]

    def _reference(self, batches: Sequence[Batch]) -> list[tuple[Batch, list[float]]]:
        return [(batch, batch.sums(self.logprobs(batch, reference=True).cpu()).tolist()) for batch in batches]

    @abstractmethod
    def close(self) -> None:
        """Ends the worker threads."""


def reduce_gradients(policy: Policy) -> None:
    """Sums the gradients over all processes of torch.distributed; does nothing where it is not initialised.

    Losses are divided by totals of the whole step over all processes, so this is a sum, not a mean.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    for parameter in policy.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
