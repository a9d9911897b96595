"""The one trainer: ``python -m app.training.trainer <run folder>`` turns a snapshot into an adapter.

A child process, and the only one that trains. What it reads (``job.json``), appends (``events.jsonl``) and leaves behind
(``result.json``, the adapter) is described in doc/training.md. Started again after whatever ended it, it goes on from the
newest checkpoint. Several processes (``torchrun``, Ray Train) share one run: each calls `main` or `train`. It knows no
database, opens no connection, and judges nothing: whether the adapter is any good, the gate decides.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.training.lock import RUN_LOCK, RunLock
from app.training.worker.environment import ENVIRONMENT
from app.training.worker.events import Events
from app.training.worker.job import EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED, Cancelled, Job, TrainingFailed, read_job
from app.training.worker.stop import Stop

if TYPE_CHECKING:
    from app.training.worker.run import Outcome

EXIT_LOCKED: Final = 4
_MARK: Final = "APRENDIZ_TRAINER"
_LOCK_TRIES: Final = 5
_LOCK_WAIT_S: Final = 0.1
_NO_NETWORK: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
_FULL = "The disk is full. Free some space and start the run again: it goes on from its newest checkpoint."
_UNFORESEEN = "The run failed for a reason that the trainer does not know; its log says more."
_MEMORY = "There is not enough memory to train this model. Try a smaller max_tokens or rank, or a smaller model."


def main(argv: list[str] | None = None) -> int:
    """Trains the run in the folder that is named; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m app.training.trainer <run folder>", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    _environment()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    stop = Stop()
    stop.listen()
    folder = Path(arguments[0])
    if os.environ.get("RANK", "0") != "0":
        with Events(None) as events:
            return _run(folder, events, stop)
    return _first(folder, stop)


def train(job: Job, events: Events, stop: Stop) -> Outcome:
    """Trains one run in this process, which may be one of several.

    Raises:
        TrainingFailed, LoadRefused: with words for people.
        Cancelled: SIGTERM came; a checkpoint is written where there was something to keep.
        OSError: disk full.
    """
    from app.training.worker.run import run

    return run(job, events, stop)


def _first(folder: Path, stop: Stop) -> int:
    lock = RunLock(folder / RUN_LOCK)
    try:
        if not _locked(lock):
            print("Another process works on this run already.", file=sys.stderr)  # noqa: T201
            return EXIT_LOCKED
        with Events(folder / "events.jsonl") as events:
            return _run(folder, events, stop)
    except OSError as error:
        print(f"The run's folder cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    finally:
        lock.release()


def _locked(lock: RunLock) -> bool:
    # Somebody who only asks whether the lock is held holds it for a moment.
    for _ in range(_LOCK_TRIES):
        if lock.acquire():
            return True
        time.sleep(_LOCK_WAIT_S)
    return False


def _run(folder: Path, events: Events, stop: Stop) -> int:
    try:
        job = read_job(folder)
        os.nice(job.nice)
        outcome = train(job, events, stop)
    except Cancelled:
        events.write("cancelled")
        return EXIT_CANCELLED
    except Exception as error:  # noqa: BLE001 (the border of the process: whatever it was, people get words and the log the trace)
        traceback.print_exc()
        events.write("failed", detail=_words(error))
        return EXIT_FAILED
    events.write("done", **outcome.result)
    return EXIT_DONE


def _words(error: Exception) -> str:
    """What happened, for people: no path, no foreign text."""
    from app.providers.workers.hf_source import LoadRefused

    if isinstance(error, TrainingFailed | LoadRefused):
        return error.detail
    said = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in said:
        return _FULL
    if isinstance(error, MemoryError) or "out of memory" in said or "not enough memory" in said:
        return _MEMORY
    return _UNFORESEEN


def _environment() -> None:
    """Starts this process anew, once, where a variable that libraries read as they are loaded is missing."""
    wanted: dict[str, Any] = {**ENVIRONMENT, **_NO_NETWORK}
    missing = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    if not missing or os.environ.get(_MARK):
        return
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing, _MARK: "1"})  # noqa: S606 (ourselves)


if __name__ == "__main__":
    sys.exit(main())
