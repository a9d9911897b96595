"""`Policy` for every other decoder of transformers: its own forward, autograd, and LoRA matrices on its linear layers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.providers.workers.hf_source import LoadRefused
from app.training.config import TrainConfig
from app.training.worker.batch import Batch
from app.training.worker.lora import save_adapter
from app.training.worker.losses import Loss
from app.training.worker.policy import Policy, Result
from app.training.worker.threads import Workers


class LoraLinear(nn.Module):  # type: ignore[misc]
    """A frozen linear layer with a low-rank change, as PEFT computes it. ``on``: whether the change counts."""

    def __init__(self, base: Any, config: TrainConfig, generator: Any) -> None:
        super().__init__()
        self.base = base
        bound = 1 / math.sqrt(base.in_features)
        first = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(first.to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=base.weight.device))
        self._scale, self._dropout = config.alpha / config.rank, config.dropout
        self.on = True

    def forward(self, x: Any) -> Any:
        result = self.base(x)
        if not self.on:
            return result
        low = functional.linear(functional.dropout(x, self._dropout, self.training), self.lora_a.to(x.dtype))
        return result + functional.linear(low, self.lora_b.to(x.dtype)) * self._scale


class GenericPolicy(Policy):
    """See `Policy`. One micro-batch after the other; torch's threads work inside each operation."""

    def __init__(self, folder: Path, *, config: TrainConfig, device: Any, dtype: Any, threads: int) -> None:
        self.device, self.dtype, self._config = device, dtype, config
        self.batch_tokens, self.parts = 2048, 1
        self._workers = Workers(1, threads)
        self._folder = folder
        full = config.tuning == "full"
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if full else dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).to(device)
        self._model.requires_grad_(full)
        self._layers = {} if full else self._adapt()
        self._keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._versions = self._version()

    def _adapt(self) -> dict[str, LoraLinear]:
        generator = torch.Generator().manual_seed(self._config.seed)
        head = self._model.get_output_embeddings()
        chosen = [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        if not chosen:
            raise LoadRefused("This kind of model has no linear layers that an adapter could change.")
        layers = {}
        for name, module in chosen:
            parent, _, last = name.rpartition(".")
            layers[name] = LoraLinear(module, self._config, generator)
            setattr(self._model.get_submodule(parent), last, layers[name])
        return layers

    def parameters(self) -> list[Any]:
        return [each for each in self._model.parameters() if each.requires_grad]

    def trainable(self) -> dict[str, Any]:
        if self._config.tuning == "full":
            return {name: each.detach() for name, each in self._model.named_parameters()}
        named = {}
        for name, layer in self._layers.items():
            named[f"base_model.model.{name}.lora_A.weight"] = layer.lora_a.detach()
            named[f"base_model.model.{name}.lora_B.weight"] = layer.lora_b.detach()
        return named

    def logprobs(self, batch: Batch, *, reference: bool = False) -> Any:
        self._model.eval()
        if not reference:
            return self._logprobs(batch)
        if self._config.tuning == "full" and self._version() != self._versions:
            raise ValueError("the reference is gone: in full tuning, ask before the first step")
        self._switch(on=False)
        try:
            with torch.no_grad():
                return self._logprobs(batch)
        finally:
            self._switch(on=True)

    def accumulate(self, batches: Sequence[Batch], loss: Loss, *, seed: int = 0) -> list[Result]:
        for parameter in self.parameters():
            parameter.grad = None
        self._model.train(bool(self._config.dropout))
        devices = [] if self.device.type == "cpu" else [self.device]
        results = []
        with torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"):
            for at, batch in enumerate(batches):
                torch.manual_seed(seed * 65_537 + at)
                value, statistics = loss(batch.to(self.device), self._logprobs(batch))
                value.backward()
                results.append(Result(float(value.detach()), statistics))
        return results

    def _logprobs(self, batch: Batch) -> Any:
        indices = list(batch.unrolled())
        length = max(len(each) for each in indices)
        tokens = torch.zeros(len(indices), length, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        # Which row and column of the padded batch predicts each label: sequences see a shared position each in its own row.
        rows, columns = batch.label_sequence, batch.positions[batch.label_index]
        for row, each in enumerate(indices):
            tokens[row, : len(each)] = batch.tokens[each]
            mask[row, : len(each)] = 1
        wanted, where = torch.unique(columns, return_inverse=True)
        extra: dict[str, Any] = {"logits_to_keep": wanted.to(self.device)} if self._keeps else {}
        if not self._keeps:
            where = columns
        with torch.autocast(
            self.device.type, self.dtype, enabled=self._config.tuning == "full" and self.dtype != torch.float32
        ):
            out = self._model(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device), use_cache=False, **extra)
        logits = out.logits[rows.to(self.device), where.to(self.device)].float()
        labels = batch.labels.to(self.device)
        return logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)

    def save(self, folder: Path) -> None:
        if self._config.tuning == "full":
            self._model.to(self.dtype).save_pretrained(folder)
            AutoTokenizer.from_pretrained(self._folder, local_files_only=True).save_pretrained(folder)
            self._model.to(torch.float32)
            return
        save_adapter(folder, self.trainable(), self._config, sorted({name.rsplit(".", 1)[-1] for name in self._layers}))

    def _switch(self, *, on: bool) -> None:
        for layer in self._layers.values():
            layer.on = on

    def _version(self) -> int:
        return sum(each._version for each in self._model.parameters())

    def close(self) -> None:
        self._workers.close()
