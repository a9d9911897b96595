"""The lock of a run: its child holds it while it lives, and what is written in it says which process that is.

The kernel drops the lock when the process dies, so a held lock is a living child, whoever started it. The process id alone
proves nothing, because ids are used again: with the moment at which the process began it does.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RUN_LOCK: Final = "run.lock"
_MOST_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Holder:
    """A process. ``began``: when, in the kernel's own ticks (field 22 of ``/proc/<pid>/stat``); None: no /proc here."""

    pid: int
    began: int | None

    def lives(self) -> bool:
        """Whether exactly this process is there. A zombie is not."""
        if self.began is None:
            return _exists(self.pid)
        return began(self.pid) == self.began


class RunLock:
    """An exclusive ``flock`` on a file. Not for sharing between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Takes the lock and writes who we are; False: another process has it. Raises OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            me = json.dumps({"pid": os.getpid(), "began": began(os.getpid())}).encode()
            os.ftruncate(fd, 0)
            os.pwrite(fd, me, 0)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Lets go; may be called twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now. Raises OSError where the file cannot be opened."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(fd)
    return False


def holder(path: Path) -> Holder | None:
    """Who holds the lock; None: nobody, or it has not said yet who it is. Raises OSError."""
    if not is_held(path):
        return None
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
        pid, when = found["pid"], found["began"]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return None
    if not isinstance(pid, int) or pid <= 1 or not isinstance(when, int | None):
        return None
    named = Holder(pid, when)
    return named if named.lives() else None


def began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None: it is gone, a zombie, or there is no /proc."""
    try:
        # The name in parentheses may hold anything, parentheses too; what follows the last one does not.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
