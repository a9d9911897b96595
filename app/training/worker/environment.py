"""What the starter of a training process puts into its environment. Imports nothing, so that the service may read it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        # glibc would give every large tensor back to the kernel and fault its pages in again: a quarter of all CPU time.
        "MALLOC_MMAP_THRESHOLD_": "8589934592",
        "MALLOC_TRIM_THRESHOLD_": "68719476736",
        "MALLOC_TOP_PAD_": "67108864",
        # Arenas of other threads than the main one end at 64 MiB, and then every large tensor is a mapping of its own again.
        "MALLOC_ARENA_MAX": "1",
        # Workers are threads of ours with their own share of torch's threads; idle OpenMP threads must not spin beside them.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
)
"""Environment variables of a child process that trains. Optional: without them it is slower, not wrong."""
