"""The processes of one run: one, or as many as a launcher (torchrun, Ray Train) started. Only the first writes files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

_WAIT = timedelta(minutes=30)
"""How long one process waits for the others: as long as the slowest may need for a checkpoint or a conversion."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """This process' place among ``world``."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process' part of what all have in the same order."""
        return things[self.rank :: self.world]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes, number by number."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(list(numbers), dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            tensor = tensor.cuda()
        distributed.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def wait(self) -> None:
        """Returns once all processes have come here."""
        self.sum([0.0])


def launched() -> int:
    """How many processes the launcher started, by its environment: 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group that this process belongs to: joined here, or before by whoever calls (Ray Train)."""
    if distributed.is_available() and distributed.is_initialized():
        yield Group(distributed.get_rank(), distributed.get_world_size())
        return
    if launched() == 1:
        yield Group()
        return
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_WAIT)
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def versions() -> dict[str, Any]:
    """What the numbers of a run depend on beside its inputs."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
