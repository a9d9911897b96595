"""`Policy` for Llama-type models: `llama.py`'s arithmetic, several micro-batches at once, one flat tensor that is trained."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from app.training.config import TrainConfig
from app.training.worker.batch import Batch
from app.training.worker.llama import Dropout, Llama
from app.training.worker.lora import save_adapter
from app.training.worker.losses import Loss
from app.training.worker.policy import Policy, Result
from app.training.worker.shape import Shape, frequencies
from app.training.worker.threads import Workers, assign
from app.training.worker.weights import GROUPS, FullLayout, Grads, LoraLayout, Reader, first_lora, load

_MOST_WORKERS: Final = 8
"""Each worker holds activations and a gradient of its own; beyond this many, workers get several threads instead."""
_TOKENS: Final = {"cpu": 512, "cuda": 4096, "mps": 2048}


class LlamaPolicy(Policy):
    """See `Policy`. ``settings``: the model's transformers config."""

    def __init__(
        self, folder: Path, settings: Any, shape: Shape, *, config: TrainConfig, device: Any, dtype: Any, threads: int
    ) -> None:
        self.device, self.dtype = device, dtype
        self.batch_tokens = _TOKENS.get(device.type, 2048)
        self._config, self._settings, self._folder = config, settings, folder
        self._scale = config.alpha / config.rank
        self._layout = LoraLayout(shape, config.rank) if config.tuning == "lora" else FullLayout(shape)
        # All weights' gradients once a worker is too much; and matrix products of full tuning divide well among threads.
        self.parts = min(threads, _MOST_WORKERS) if config.tuning == "lora" and device.type == "cpu" else 1
        self._workers = Workers(self.parts, max(1, threads // self.parts))
        with torch.no_grad():
            if isinstance(self._layout, LoraLayout):
                flat = first_lora(self._layout, config.seed).to(device)
                self._copy: Any = None
                self._weights = load(folder, shape, dtype, device, config.rank)
            else:
                flat = _read_all(self._layout, folder, device)
                self._copy = flat if dtype == torch.float32 else flat.to(dtype)
                self._weights = self._layout.weights(self._copy)
        self._flat = torch.nn.Parameter(flat)
        self._model = Llama(shape, self._weights, *frequencies(settings))
        self._buffers: list[Grads] = []
        self._first = self._flat._version
        self._stepped = False

    def parameters(self) -> list[Any]:
        return [self._flat]

    def trainable(self) -> dict[str, Any]:
        return self._layout.named(self._flat.detach())

    def logprobs(self, batch: Batch, *, reference: bool = False) -> Any:
        self._refresh()
        batch = batch.to(self.device)
        if reference:
            self._check_reference()
            with torch.no_grad():
                return self._model.forward(batch, adapter=False, keep=False).logprobs
        return _Logprobs.apply(self._flat, self, batch)

    def accumulate(self, batches: Sequence[Batch], loss: Loss, *, seed: int = 0) -> list[Result]:
        self._refresh()
        self._stepped = True
        while len(self._buffers) < self.parts:
            self._buffers.append(self.grads())
        shares = assign([len(batch.tokens) for batch in batches], self.parts)

        def work(number: int) -> list[Result]:
            into = self._buffers[number]
            into.flat.zero_()
            return [self._one(batches[at], loss, into, seed * 65_537 + at) for at in shares[number]]

        results: list[Result | None] = [None] * len(batches)
        for share, found in zip(shares, self._workers.each(work), strict=True):
            for at, result in zip(share, found, strict=True):
                results[at] = result
        total = self._buffers[0].flat
        for other in self._buffers[1:]:
            total.add_(other.flat)
        self._flat.grad = total
        return [result for result in results if result is not None]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _one(self, batch: Batch, loss: Loss, into: Grads, seed: int) -> Result:
        batch = batch.to(self.device)
        dropout = Dropout(self._config.dropout, seed, self.device) if self._config.dropout and self._copy is None else None
        tape = self._model.forward(batch, adapter=True, keep=True, dropout=dropout)
        leaf = tape.logprobs.detach().requires_grad_()
        with torch.enable_grad():
            value, statistics = loss(batch, leaf)
            (grad,) = torch.autograd.grad(value, leaf)
        self._model.backward(tape, grad, into)
        return Result(float(value.detach()), statistics)

    def _reference(self, batches: Sequence[Batch]) -> list[tuple[Batch, list[float]]]:
        self._check_reference()
        self._refresh()
        shares = assign([len(batch.tokens) for batch in batches], self.parts)

        def work(number: int) -> list[list[float]]:
            with torch.no_grad():
                return [self._sums(batches[at]) for at in shares[number]]

        values: dict[int, list[float]] = {}
        for share, found in zip(shares, self._workers.each(work), strict=True):
            values.update(zip(share, found, strict=True))
        return [(batch, values[at]) for at, batch in enumerate(batches)]

    def _sums(self, batch: Batch) -> list[float]:
        batch = batch.to(self.device)
        found: list[float] = batch.sums(self._model.forward(batch, adapter=False, keep=False).logprobs).tolist()
        return found

    def save(self, folder: Path) -> None:
        if self._copy is None:
            targets = [name.rsplit(".", 1)[-1] for names in GROUPS.values() for name in names]
            save_adapter(folder, self.trainable(), self._config, targets)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.iterdir()):
            # The tokenizer's and the model's descriptions, not its weights.
            if path.suffix in (".json", ".jinja", ".txt", ".model") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)
        tensors = {name: tensor.cpu().to(self.dtype).clone() for name, tensor in self.trainable().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def grads(self) -> Grads:
        """A zeroed buffer for gradients."""
        return self._layout.grads(torch.zeros_like(self._flat.detach()), self._scale)

    @property
    def model(self) -> Llama:
        return self._model

    def close(self) -> None:
        self._workers.close()

    def _check_reference(self) -> None:
        # A fused optimizer changes weights without counting up their version: any gradient given may have been used.
        if self._copy is not None and (self._stepped or self._flat._version != self._first):
            raise ValueError("the reference is gone: in full tuning, ask before the first step")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _refresh(self) -> None:
        """Brings what the computation reads up to date with the trained weights, whoever changed them."""
        if isinstance(self._layout, LoraLayout):
            self._layout.refresh(self._flat.detach(), self._weights, self._scale)
        elif self._copy.dtype != torch.float32:
            self._copy.copy_(self._flat)


def _read_all(layout: FullLayout, folder: Path, device: Any) -> Any:
    flat = torch.empty(layout.size, device=device)
    read = Reader(folder)
    for name, target in layout.named(flat).items():
        target.copy_(read(name))
    return flat


class _Logprobs(torch.autograd.Function):  # type: ignore[misc]
    """The bridge to autograd for callers that want it."""

    @staticmethod
    def forward(ctx: Any, flat: Any, policy: LlamaPolicy, batch: Batch) -> Any:
        ctx.policy = policy
        ctx.tape = policy.model.forward(batch, adapter=True, keep=flat.requires_grad)
        return ctx.tape.logprobs

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        into = ctx.policy.grads()
        with torch.no_grad():
            ctx.policy.model.backward(ctx.tape, grad.contiguous(), into)
        return into.flat, None, None
