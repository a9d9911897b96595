"""Threads that compute micro-batches side by side.

Two workers with one torch thread each are faster than one worker with two: much of a small model's work is too small to be
divided inside one operation, but micro-batches are independent. Not a scheduler: what runs where is fixed in advance, so that
the sums come out the same from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

R = TypeVar("R")


class Workers:
    """``count`` threads, each with ``threads_each`` torch threads of its own. One worker is the calling thread itself."""

    def __init__(self, count: int, threads_each: int) -> None:
        self.count = count
        self._each = threads_each
        self._pool = ThreadPoolExecutor(count, "compute", initializer=self._prepare) if count > 1 else None
        self._prepare()

    def _prepare(self) -> None:
        # torch keeps this number for each thread that starts an operation.
        torch.set_num_threads(self._each)
        torch.set_flush_denormal(True)

    def each(self, work: Callable[[int], R]) -> list[R]:
        """``[work(0), …, work(count - 1)]``, at the same time. The first error is raised, after all have ended."""
        if self._pool is None:
            return [work(0)]
        futures = [self._pool.submit(work, number) for number in range(self.count)]
        errors = [error for each in futures if (error := each.exception()) is not None]
        if errors:
            raise errors[0]
        return [each.result() for each in futures]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def assign(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Which of the pieces of work each of ``count`` workers does: longest first to whoever has least; the same every time."""
    shares: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for number in sorted(range(len(sizes)), key=lambda each: (-sizes[each], each)):
        lightest = load.index(min(load))
        shares[lightest].append(number)
        load[lightest] += sizes[number]
    return [sorted(share) for share in shares]
