"""The order in which rows are taken: from a seed alone, the same on every machine and under every version of Python."""

from __future__ import annotations

import hashlib


def permutation(count: int, seed: str) -> list[int]:
    """The numbers below ``count``, shuffled."""
    # Sorted by SHA-256 and not by a library's shuffle: the order must outlive versions of Python.
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{seed} {number}".encode()).digest())
