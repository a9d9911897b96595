"""The one trainer: ``python -m app.training.trainer <run folder>`` turns a snapshot into an adapter.

A child process, and the only one that trains. What it reads (``job.json``), appends (``events.jsonl``) and leaves behind
(``result.json``, the adapter) is described in doc/training.md. Started again after whatever ended it, it goes on from the
newest checkpoint. Several processes (``torchrun``, Ray Train) share one run: each calls `main` or `train`. It knows no
database, opens no connection, and judges nothing: whether the adapter is any good, the gate decides.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.training.lock import RUN_LOCK, RunLock
from app.training.worker.events import Events
from app.training.worker.job import EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED, Cancelled, Job, read_job
from app.training.worker.process import renew, words
from app.training.worker.stop import Stop

if TYPE_CHECKING:
    from app.training.worker.run import Outcome

EXIT_LOCKED: Final = 4
_LOCK_TRIES: Final = 5
_LOCK_WAIT_S: Final = 0.1


def main(argv: list[str] | None = None) -> int:
    """Trains the run in the folder that is named; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m app.training.trainer <run folder>", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    renew()
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
        # At least so nice: whoever started this process may have said so already.
        os.setpriority(os.PRIO_PROCESS, 0, max(job.nice, os.getpriority(os.PRIO_PROCESS, 0)))
        outcome = train(job, events, stop)
    except Cancelled:
        events.write("cancelled")
        return EXIT_CANCELLED
    except Exception as error:  # noqa: BLE001 (the border of the process: whatever it was, people get words and the log the trace)
        traceback.print_exc()
        events.write("failed", detail=words(error))
        return EXIT_FAILED
    events.write("done", **outcome.result)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
