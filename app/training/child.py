"""The process of one run: started in a session of its own, or found alive after a restart of the service; and signals to it.

A signal goes only to a process that is proved to be the run's: our own child, not reaped yet, or the holder of the run's
lock, by process id and start time. It knows nothing of what the process does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from app.providers.process import base_environment
from app.training.folders import LOG
from app.training.lock import RUN_LOCK, Holder, began, holder

COMMAND: Final = (sys.executable, "-P", "-m", "app.training.trainer")
NICE: Final = 10


class Child:
    """A living process of a run. Make it with `start` or `find`; `let_go` or `kill` it in the end."""

    def __init__(self, who: Holder, process: subprocess.Popen[bytes] | None) -> None:
        self._who = who
        self._process = process
        self.paused = False

    @classmethod
    def start(cls, folder: Path, command: Sequence[str]) -> Self:
        """Starts ``command folder``; what it prints goes to its log. Raises OSError."""
        fd = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Not asyncio's: its transport kills the process when the loop ends, and this one is to live on.
            process = subprocess.Popen(  # noqa: S603  # the command is ours, not a caller's
                [*command, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=base_environment(),
                start_new_session=True,
            )
        finally:
            os.close(fd)
        with contextlib.suppress(ProcessLookupError):  # it ended at once; `gone` tells
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        return cls(Holder(process.pid, began(process.pid)), process)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The process that holds the run's lock and said who it is; None: there is none. Raises OSError."""
        who = holder(folder / RUN_LOCK)
        if who is None:
            return None
        found = cls(who, None)
        found.paused = True  # whoever stopped it may be gone: it is told to go on
        found.go_on()
        return found

    @property
    def pid(self) -> int:
        return self._who.pid

    def gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None if self._process is not None else not self._who.lives()

    @property
    def status(self) -> int | None:
        """The exit status once it is gone, negative for a signal; None: it was not started here, so nobody told us."""
        return None if self._process is None else self._process.returncode

    def pause(self) -> None:
        """Stops it where it is."""
        if not self.paused and self._signal(signal.SIGSTOP):
            self.paused = True

    def go_on(self) -> None:
        """Lets it go on after `pause`."""
        if self.paused and self._signal(signal.SIGCONT):
            self.paused = False

    def end(self) -> None:
        """Asks it to end (SIGTERM); one that is paused goes on to do so."""
        self._signal(signal.SIGTERM)
        self.go_on()

    def kill(self) -> None:
        """Ends it and what it started, at once."""
        self._signal(signal.SIGKILL)

    def let_go(self) -> None:
        """Leaves it to itself: it goes on, and whoever comes next finds it by its lock."""
        self.go_on()
        if self._process is not None and self._process.returncode is None:
            # It is not ours any more: without this, Popen would warn of a child that nobody waited for.
            self._process.returncode = 0

    def _signal(self, number: signal.Signals) -> bool:
        if self.gone():
            return False
        try:
            # The whole session: a trainer may have helpers. It is a leader only if it was started as one.
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True
