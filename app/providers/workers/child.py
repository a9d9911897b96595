"""The worker's side of an engine: takes the configuration, limits itself, dies with its parent, reports back.

Protocol, the same for all workers:

* stdin: one line of JSON, the configuration. Then nothing; its end means that the parent is gone, and the worker ends too.
* stdout: lines of JSON from this module only, ``{"listening": {...}}`` once the server accepts connections and
  ``{"failed": {...}}`` before an exit on purpose. Whatever else is printed, by us or by native libraries, goes to stderr.
* the configuration holds ``socket`` (path of the Unix socket to serve on) or else ``host`` (serve there on a port that the
  system chooses and report it), ``api_key`` (ask it as ``Authorization: Bearer``, on all but ``GET /health``), and what the
  provider added. ``GET /health`` answers 200 when the model is ready and 503 until then.

It is not a sandbox: it keeps a hostile or broken model file away from the service's memory and secrets, no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20
EXIT_FAILED = 3


class Child:
    """What a worker knows of its parent. Made by `begin`."""

    def __init__(self, config: Mapping[str, Any], report_fd: int) -> None:
        self.config = config
        self._report_fd = report_fd

    def listening(self, *, port: int | None = None, **facts: Any) -> None:
        """Says that the server accepts connections, loaded or not. ``facts`` (``device``, ...) go to `Engine.facts`."""
        self._report({"listening": {"port": port, **facts}})

    def fail(self, detail: str, *, unknown: bool = False) -> NoReturn:
        """Says why there will be no engine, in words for the caller (no path, no third-party text), and exits.

        ``unknown``: there is no such model, rather than one that cannot be loaded.
        """
        self._report({"failed": {"detail": detail, "unknown": unknown}})
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    def _report(self, message: Mapping[str, Any]) -> None:
        os.write(self._report_fd, json.dumps(message).encode() + b"\n")


def begin() -> Child:
    """Reads the configuration and arms limits and the watch on the parent. Call it first, before heavy imports."""
    report_fd = os.dup(1)
    os.dup2(2, 1)
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    config = json.loads(line)
    _limit(int(config.get("memory_mb") or 0))
    _die_with_parent(int(config["parent_pid"]))
    return Child(config, report_fd)


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb > 0:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * _MIB, memory_mb * _MIB))


def _die_with_parent(parent_pid: int) -> None:
    """Two ways, for each has a gap: the kernel's signal is Linux only; the thread waits while a native call holds the lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the line above
            os._exit(0)
    threading.Thread(target=_watch_stdin, name="parent-watch", daemon=True).start()


def _watch_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with whatever the worker itself started
    os._exit(0)
