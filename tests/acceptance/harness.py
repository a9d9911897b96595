"""The service as an operator runs it: a process of its own, seen only through its address, its output and signals.

The one harness for whatever needs that: acceptance tests, start and end, the command line, the pages, measurements. What a
thread can show, `tests.conftest` does faster.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from app.models.pull import pull

ROOT = Path(__file__).parents[2]
PASSWORD = "seven quiet hills at dawn"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """The service in a child. ``start`` waits until it is ready; ``kill`` is SIGKILL to the service alone.

    Args:
        data: its data directory, also where it runs: no configuration of a developer's reaches it.
        module: what ``python -m`` runs; ``aprendiz serve`` unless told.
        environ: on top of what it needs; there is nothing else in its environment.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int | None = None,
        provider: str = "echo",
        model: str = "echo",
        module: str = "app.cli.main",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.module = module
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(data),
            "APRENDIZ_DATA_DIR": str(data),
            "APRENDIZ_SERVER__PORT": str(self.port),
            "APRENDIZ_MODEL__PROVIDER": provider,
            "APRENDIZ_MODEL__MODEL": model,
            "APRENDIZ_LOGGING__LEVEL": "INFO",
            **(environ or {}),
        }
        self.output: list[str] = []
        self.log: list[str] = []
        self.ready_after = 0.0
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self, *, timeout: float = 60) -> ServiceProcess:
        begun = time.monotonic()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", self.module, *(["serve"] if self.module == "app.cli.main" else [])]
        self._process = subprocess.Popen(
            command, cwd=self.data, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._readers = [
            threading.Thread(target=_drain, args=pair, daemon=True)
            for pair in ((self._process.stdout, self.output), (self._process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()
        while time.monotonic() - begun < timeout:
            if self._process.poll() is not None:
                self._read_out()
                raise AssertionError(f"the service ended with {self._process.returncode}:\n" + "".join(self.log[-30:]))
            try:
                # Reading certificates, which plain HTTP needs not, takes longer than the question.
                if httpx.get(f"{self.url}/health/ready", timeout=2, verify=False).status_code == 200:
                    self.ready_after = time.monotonic() - begun
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("the service was not ready in time:\n" + "".join(self.log[-30:]))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait(10)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """The exit code; ``output`` and ``log`` are complete then."""
        code = self.process.wait(timeout)
        self._read_out()
        return code

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.terminate()
            try:
                self.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def client(self, headers: Mapping[str, str] | None = None) -> httpx.Client:
        """A client; use it as a context manager."""
        return httpx.Client(base_url=self.url, headers=dict(headers or {}), timeout=20, trust_env=False, verify=False)

    def __enter__(self) -> ServiceProcess:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def invite(self) -> str:
        """The token of the printed invite."""
        for _ in range(200):
            found = re.search(r"#invite=(\S+)", "".join(self.output))
            if found:
                return found.group(1)
            time.sleep(0.02)
        raise AssertionError("no invite was printed:\n" + "".join(self.output))

    def admin(self, name: str = "ada") -> dict[str, str]:
        """Registers the first admin; returns the headers that carry its token."""
        body = {"username": name, "password": PASSWORD, "invite": self.invite()}
        answer = httpx.post(f"{self.url}/auth/register", json=body, timeout=30, verify=False)
        assert answer.status_code == 201, answer.text
        return self.login(name)

    def login(self, name: str = "ada") -> dict[str, str]:
        answer = httpx.post(f"{self.url}/auth/token", data={"username": name, "password": PASSWORD}, timeout=30, verify=False)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def rss(self) -> int:
        """Resident memory of the service process alone, in bytes."""
        return self._memory("VmRSS")

    def peak(self) -> int:
        """The highest `rss` so far."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition(f"{field}:")[2].split()[0]) * 1024

    def _read_out(self) -> None:
        for reader in self._readers:
            reader.join(10)

    def engines(self) -> list[int]:
        """Process ids of the engine workers, found as children of the service."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if int(status[1]) == self.pid and status[0] != "Z":
                    found.append(int(entry.name))
        return found


def predict(url: str, headers: Mapping[str, str], **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/predict", json={"prompt": "hello", **body}, headers=dict(headers), timeout=60)


def _drain(stream: Any, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line)


def install(gguf: Path, data: Path, name: str, *, variant: bool = False) -> str:
    """Puts a model file where the service looks for it, as `aprendiz models pull FILE` does; returns its name.

    ``variant``: another file that answers the same: one letter of its title differs, so it is another version.
    """
    source = gguf
    if variant:
        source = data.parent / f"{name}.gguf"
        title = b"general.name"
        content = bytearray(gguf.read_bytes())
        at = content.index(title) + len(title) + 4 + 8  # after the key: a type of 4 bytes, a length of 8, then the text
        content[at] ^= 0x20
        source.write_bytes(content)
    pull(str(source), data / "models", lambda done, total, phase: None, name=name)
    return name
