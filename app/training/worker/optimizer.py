"""AdamW with its learning rate by step, and its state as plain tensors, which depends on the steps taken alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of one step, counted from 0: rises over ``warmup`` of the steps, then falls by ``schedule`` towards 0."""
    peak = config.learning_rate or 0.0
    rising = math.ceil(config.warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    if config.schedule == "constant":
        return peak
    done = (step - rising) / max(1, steps - rising)
    return peak * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


class Optimizer:
    """AdamW over the trained tensors of a policy.

    Args:
        parameters: float32 leaf tensors; changed in place.
    """

    def __init__(self, parameters: Sequence[Any], config: TrainConfig) -> None:
        self._parameters = list(parameters)
        self._most = config.max_grad_norm
        # Not fused: that kernel does not count up a tensor's version, by which a policy sees that its weights have changed.
        self._adam = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate or 0.0, weight_decay=config.weight_decay, foreach=False
        )

    def step(self, rate: float) -> float:
        """Clips the gradients, takes a step, drops them. Returns their norm before; not finite: no step is taken."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._most))
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Any]:
        """All state on the CPU: ``parameter.N``, and after the first step ``exp_avg.N``, ``exp_avg_sq.N`` and ``step.N``."""
        found: dict[str, Any] = {}
        for number, parameter in enumerate(self._parameters):
            found[f"parameter.{number}"] = parameter.detach()
            found |= {f"{name}.{number}": value for name, value in self._adam.state[parameter].items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Any]) -> None:
        """Takes over what `tensors` gave.

        Raises:
            ValueError: they are not those of such an optimizer.
        """
        kinds = ("parameter", "exp_avg", "exp_avg_sq", "step")
        wanted = {f"{kind}.{number}" for number in range(len(self._parameters)) for kind in kinds}
        if set(tensors) != wanted:
            raise ValueError("these are not the tensors of this optimizer")
        for number, parameter in enumerate(self._parameters):
            if any(tensors[f"{kind}.{number}"].shape != parameter.shape for kind in kinds[:3]):
                raise ValueError("these tensors have other shapes")
            with torch.no_grad():
                parameter.copy_(tensors[f"parameter.{number}"])
            state = {kind: tensors[f"{kind}.{number}"].to(parameter.device, copy=True) for kind in kinds[1:]}
            self._adam.state[parameter] = state
