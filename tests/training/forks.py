"""Trainers by the dozen: a process that has imported torch once and forks a real trainer process for each start.

A trainer takes seconds to import torch; forked from one that has, it starts at once, and can be killed like any other. Nothing
computes before the fork, so there are no threads to lose.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app.training import trainer
from app.training.worker.process import MARK


class Forks:
    """Starts trainers; use as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)

    def start(self, folder: Path, **limits: int) -> int:
        """Starts a trainer; its process id. ``limits``: of the module `resource`, by name."""
        return int(self._ask({"folder": str(folder), "limits": limits}))

    def wait(self, pid: int) -> int:
        """The exit status of a trainer, negative for a signal."""
        return int(self._ask({"wait": pid}))

    def finish(self, folder: Path, **limits: int) -> int:
        """Runs a trainer to its end; its exit status."""
        return self.wait(self.start(folder, **limits))

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    fonts = tempfile.mkdtemp()  # to be looked for once, not once a run
    os.environ |= {MARK: "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": fonts}
    for name in (
        *("app.training.worker.run", "app.training.worker.score", "matplotlib.backends.backend_agg", "transformers"),
        "transformers.models.llama.configuration_llama",  # of the tiny base; it brings most of torch with it
    ):
        importlib.import_module(name)
    _use(importlib.import_module("matplotlib.font_manager"), importlib.import_module("transformers").PreTrainedTokenizerFast)
    try:
        _listen()
    finally:
        shutil.rmtree(fonts)


def _use(*_: object) -> None:
    """Lazy modules are imported when something of them is taken."""


def _listen() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        _become(trainer.main, Path(question["folder"]), question["limits"])


def _become(main: Any, folder: Path, limits: dict[str, int]) -> None:
    status = 70
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        status = main([str(folder)])
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve()
