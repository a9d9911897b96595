"""A program on a pseudo-terminal: types what a person would type and waits for what they would see."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]")


class PseudoTerminal:
    """Runs ``command`` with a terminal of 40 by 120 characters. `seen` is all that it has shown, without escape sequences."""

    def __init__(self, command: list[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self._command, self._cwd, self._env = command, cwd, {**env, "TERM": "xterm"}
        self.seen = ""
        self._mark = 0

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._process = subprocess.Popen(
            self._command, cwd=self._cwd, env=self._env, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own_terminal
        )
        os.close(slave)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        self._mark = len(self.seen)
        os.write(self._master, text.encode())

    def wait_for(self, text: str, *, timeout: float = 30) -> None:
        """Until ``text`` stands behind what was waited for last, and behind what was there when something was last typed."""
        deadline = time.monotonic() + timeout
        while text not in self.seen[self._mark :]:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.seen}"
            self._read()
        self._mark = self.seen.index(text, self._mark) + len(text)

    def say(self, text: str, answer: str) -> None:
        """Types a line, waits for the answer and then for the next prompt: only then the program reads keys again."""
        self.type(text + "\r")
        self.wait_for(answer)
        self.wait_for(">")

    def wait(self, *, timeout: float = 30) -> int:
        """The exit code, once the program has ended."""
        deadline = time.monotonic() + timeout
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end:\n{self.seen}"
            self._read()
        return self._process.returncode

    def _read(self) -> None:
        ready, _, _ = select.select([self._master], [], [], 0.1)
        if not ready:
            return
        with contextlib.suppress(OSError):  # EIO: the program has closed its side
            text = os.read(self._master, 65536).decode("utf-8", "replace")
            if "\x1b[6n" in text:  # "where is the cursor?"
                os.write(self._master, b"\x1b[1;1R")
            self.seen += _ESCAPES.sub("", text).replace("\r", "")


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
