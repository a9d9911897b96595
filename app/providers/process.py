"""One life of a worker process: started in its own session, fed by stdin, its output kept in a bounded ring, ended for sure.

It knows nothing of models or HTTP; `app.providers.engine` supervises with it. The worker's side is
`app.providers.workers.child`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import app
from app.core.errors import AprendizError, ModelLoadFailed, UnknownModel

_LOG_LINES = 200
_LOG_LINE_CHARACTERS = 500
_MAX_REPORT_BYTES = 1 << 16
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_SPIN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_PASSED_ON_PREFIXES = ("OMP_", "GOMP_", "CUDA_", "NVIDIA_", "GGML_")

logger = logging.getLogger(__name__)


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Says when the process is gone. ``Process.wait`` waits for its pipes too, and a child of it may hold them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=1 << 16, loop=loop)
        self.gone: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        super().process_exited()


class Worker:
    """A running worker process. Made by `spawn`; `stop` must be called in the end, also when it died by itself."""

    def __init__(self, process: asyncio.subprocess.Process, exited: asyncio.Future[None], log: deque[str]) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.log = log
        self.listening: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        """Set by the worker's report that it accepts connections."""
        self.failure: AprendizError | None = None
        """Why the worker gave up, in its own words."""
        self.exited = exited
        """Done when the process is gone and reaped; then `exit_status` is there."""
        self._process = process
        self._readers = (
            asyncio.create_task(self._read_reports()),
            asyncio.create_task(self._read_log()),
        )

    @property
    def exit_status(self) -> int:
        """The exit status once it is gone, negative for a signal."""
        status = self._process.returncode
        return 0 if status is None else status

    def rss_bytes(self) -> int | None:
        """Resident memory now, or None where the system does not say."""
        try:
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            return None
        return None

    async def stop(self, grace_s: float) -> None:
        """Ends the process group: SIGTERM, ``grace_s`` seconds, SIGKILL; returns when it is reaped. May be called twice."""
        if not self.exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({self.exited}, timeout=grace_s)
        # Always: a worker that died may have left children behind that hold its pipes and sockets.
        self._signal(signal.SIGKILL)
        await asyncio.wait({self.exited})
        if self._process.stdin is not None:
            self._process.stdin.close()
        _, stuck = await asyncio.wait(self._readers, timeout=grace_s)
        for reader in stuck:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        if not self.listening.done():
            self.listening.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def feed(self, config: Mapping[str, Any]) -> None:
        """Sends the configuration. stdin stays open: its end tells the worker that we are gone."""
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("the worker was started without stdin")
        stdin.write(json.dumps(config).encode() + b"\n")
        with contextlib.suppress(ConnectionError):  # it died at once; `exited` tells
            await stdin.drain()

    async def _read_reports(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            return
        buffer = b""
        while chunk := await stdout.read(_MAX_REPORT_BYTES):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._take_report(line)
            buffer = buffer[-_MAX_REPORT_BYTES:]

    def _take_report(self, line: bytes) -> None:
        try:
            report = json.loads(line)
            if "listening" in report and not self.listening.done():
                self.listening.set_result(dict(report["listening"]))
            elif "failed" in report:
                failed = report["failed"]
                kind = UnknownModel if failed.get("unknown") else ModelLoadFailed
                self.failure = kind(str(failed["detail"])[:500])
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("an engine sent a report that cannot be read", extra={"data": {"pid": self.pid}})

    async def _read_log(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        tail = b""
        while chunk := await stderr.read(1 << 16):
            *lines, tail = (tail + chunk).split(b"\n")
            tail = tail[: 4 * _LOG_LINE_CHARACTERS]  # an endless line stays bounded
            self.log.extend(_log_line(line) for line in lines[-_LOG_LINES:] if line.strip())
        if tail.strip():
            self.log.append(_log_line(tail))


async def spawn(module: str, config: Mapping[str, Any], *, cwd: Path, env: Mapping[str, str], log: deque[str]) -> Worker:
    """Starts ``python -m module`` and sends it ``config``. Its command line and environment hold no secret.

    Raises:
        ModelLoadFailed: the system does not start another process.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: _Protocol(loop),
            sys.executable,
            "-P",
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**base_environment(), **env},
            start_new_session=True,
        )
    except OSError as error:
        raise ModelLoadFailed(f"The system refused to start an engine process ({error.strerror}).") from error
    worker = Worker(asyncio.subprocess.Process(transport, protocol, loop), protocol.gone, log)
    try:
        await worker.feed({**config, "parent_pid": os.getpid()})
    except BaseException:
        await worker.stop(0)
        raise
    return worker


def new_log() -> deque[str]:
    """A ring for the last lines that the lives of one engine wrote."""
    return deque(maxlen=_LOG_LINES)


def base_environment() -> dict[str, str]:
    """What every worker gets of our environment: nothing that could be a secret or a setting of ours."""
    environment = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    environment["PYTHONPATH"] = str(Path(app.__path__[0]).parent)
    environment["PYTHONUNBUFFERED"] = "1"
    # How long threads spin at OpenMP's barriers before they sleep. Long: tens of times slower as soon as anything else wants a
    # core. Not at all: four times slower on a free machine. See ADR 0012. An operator's own OMP_ or GOMP_ variable wins.
    if not any(name.startswith(_SPIN) for name in environment):
        environment["GOMP_SPINCOUNT"] = "1000"
    return environment


def _log_line(line: bytes) -> str:
    text = line[: 4 * _LOG_LINE_CHARACTERS].decode("utf-8", "replace")[:_LOG_LINE_CHARACTERS]
    return "".join(char if char.isprintable() else " " for char in text).rstrip()
