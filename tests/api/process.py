"""The service as a process of its own: for signals, memory and start-up, which a thread cannot show."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import PASSWORD

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A started service; ``output`` and ``log`` are files."""

    child: subprocess.Popen[bytes]
    port: int
    output: Path
    log: Path
    ready_s: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, verify=False)

    def admin(self) -> str:
        """A bearer token of the first admin, made through the printed invite."""
        invite = self.output.read_text().partition("#invite=")[2].split()[0]
        login = {"username": "ada", "password": PASSWORD}
        with self.client() as client:
            assert client.post("/auth/register", json={**login, "invite": invite}).status_code == 201
            token: str = client.post("/auth/token", json=login).json()["access_token"]
        return token

    def rss_mb(self) -> float:
        """Resident memory of the service process."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def peak_mb(self) -> float:
        """Highest resident memory so far."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def terminate(self) -> None:
        self.child.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def started(folder: Path, *, module: str = "app.main", **environ: str) -> Iterator[Process]:
    """``python -m app.main`` with the echo provider, ready to answer; killed on leaving if it still runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "APRENDIZ_DATA_DIR": str(folder / "data"),
        "APRENDIZ_SERVER__PORT": str(port),
        "APRENDIZ_SERVER__GRACE_S": "2",
        "APRENDIZ_MODEL__PROVIDER": "echo",
        "APRENDIZ_MODEL__MODEL": "echo",
        **environ,
    }
    output, log = folder / "output", folder / "log"
    began = time.monotonic()
    with output.open("wb") as stdout, log.open("wb") as stderr:
        child = subprocess.Popen([sys.executable, "-m", module], cwd=folder, env=settings, stdout=stdout, stderr=stderr)
    process = Process(child, port, output, log, 0)
    try:
        with process.client() as client:
            while not _is_ready(client):
                assert child.poll() is None, log.read_text()
                assert time.monotonic() - began < 30, "not ready"
                time.sleep(0.05)
        process.ready_s = time.monotonic() - began
        yield process
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False
