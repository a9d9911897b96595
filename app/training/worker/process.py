"""What the programs of training share as processes: the environment they need, words for what ended them. No torch."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from app.providers.workers.hf_source import LoadRefused
from app.training.worker.environment import ENVIRONMENT
from app.training.worker.job import TrainingFailed

MARK: Final = "APRENDIZ_TRAINER"
"""Set in a process that was started anew for its environment."""
_OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL = "The disk is full, or files may not grow so large here. Make room and start again: a run goes on from its checkpoint."
_MEMORY = "There is not enough memory for this model. Try a smaller max_tokens or rank, or a smaller model."
_UNFORESEEN = "It failed for a reason that the trainer does not know; the log says more."


def renew() -> None:
    """Starts this process anew, once, where a variable is missing that libraries read as they are loaded: call it before."""
    wanted = {**ENVIRONMENT, **_OFFLINE}
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if not missing or os.environ.get(MARK):
        return
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing, MARK: "1"})  # noqa: S606 (ourselves)


def words(error: Exception) -> str:
    """What happened, for people: no path, no foreign text."""
    if isinstance(error, TrainingFailed | LoadRefused):
        return error.detail
    said = str(error)
    # safetensors has an error of its own, with the system's number in its text.
    if (isinstance(error, OSError) and error.errno in _DISK) or any(f"os error {number})" in said for number in _DISK):
        return _FULL
    if isinstance(error, MemoryError) or "out of memory" in said or "not enough memory" in said:
        return _MEMORY
    return _UNFORESEEN
