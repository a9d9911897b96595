"""What the parsing child takes from itself before it reads a document: memory, time, files, and to outlive its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20
_FILES = 64


def die_with_parent(parent_pid: int) -> None:
    """Two ways, for each has a gap: the kernel's signal is Linux only; the thread waits while a native call holds the lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(0)
    threading.Thread(target=_watch_stdin, name="parent-watch", daemon=True).start()


def limit(*, memory_mb: int, cpu_s: int) -> None:
    """Arms the limits. Call it after `die_with_parent`: no thread and no process can be started any more.

    Raises ValueError or OSError where the system does not know one of those that count (memory, processor time).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    _lower(resource.RLIMIT_FSIZE, 0)  # it writes nowhere but into its pipe
    _lower(resource.RLIMIT_NOFILE, _FILES)
    _lower(resource.RLIMIT_NPROC, 0)
    if sys.platform == "linux":  # macOS has no such limit that works
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * _MIB, memory_mb * _MIB))


def _lower(what: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (most, most))


def _watch_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)
