"""A LoRA adapter on a loaded model: beside each linear layer its two small matrices, in float32 whatever the layer's type is.

They are not merged into the weights: in bfloat16 what a short training changed would mostly be rounded away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from app.core.errors import ModelLoadFailed
from app.providers.workers.peft_files import Lora


class LoraLinear(nn.Module):  # type: ignore[misc]  # torch has no types here
    """``base`` and, added to what it gives, scale · B · A of its input."""

    def __init__(self, base: nn.Linear, a: Any, b: Any) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("a", a.to(base.weight.device))
        self.register_buffer("b", b.to(base.weight.device))

    def forward(self, x: Any) -> Any:
        """As a linear layer's."""
        out = self.base(x)
        return out + functional.linear(functional.linear(x.to(torch.float32), self.a), self.b).to(out.dtype)


def apply_lora(model: Any, lora: Lora) -> None:
    """Puts ``lora`` on ``model``. Raises ModelLoadFailed, with nothing changed, where it does not fit."""
    layers = {module: _layer(model, module) for module in lora.pairs}
    for module, (a, b) in lora.pairs.items():
        if layers[module].weight.shape != (b.shape[0], a.shape[1]):
            raise ModelLoadFailed(
                f"The adapter's matrices for {module[:100]} do not fit the base: was it trained on another one?"
            )
    for module, (a, b) in lora.pairs.items():
        parent, _, name = module.rpartition(".")
        wrapped = LoraLinear(layers[module], torch.tensor(a), torch.tensor(b * lora.scale))
        setattr(model.get_submodule(parent), name, wrapped)


def _layer(model: Any, module: str) -> nn.Linear:
    try:
        layer = model.get_submodule(module)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise ModelLoadFailed(f"The base model has no linear layer {module[:100]}: was the adapter trained on another base?")
    return layer
