"""A real service in a child process, with the echo provider, for the commands that speak HTTP."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import IO, Self

import httpx

from tests.cli.conftest import Cli

PASSWORD = "seven purple lamps on a hill"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """``aprendiz serve`` beside a `Cli` that shares its data directory; ``ada`` is its admin."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        cli.environ |= {
            "APRENDIZ_SERVER__PORT": str(self.port),
            "APRENDIZ_MODEL__PROVIDER": "echo",
            "APRENDIZ_MODEL__MODEL": "echo",
        }
        self.output: list[str] = []
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.cli.main", "serve"],
            cwd=self.cli.folder,
            env=self.cli.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=_drain, args=pair, daemon=True)
            for pair in ((self._process.stdout, self.output), (self._process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()
        self._wait_until_ready()
        invite = re.search(r"#invite=(\S+)", "".join(self.output))
        assert invite is not None, self.output
        self.register("ada", invite.group(1))
        return self

    def register(self, name: str, invite: str) -> None:
        body = {"username": name, "password": PASSWORD, "invite": invite}
        httpx.post(f"{self.url}/auth/register", json=body).raise_for_status()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        finally:
            self._process.kill()
            self._process.wait()
            for reader in self._readers:
                reader.join(timeout=10)
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "".join(self.log)
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200 and any("#invite" in line for line in self.output):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the service was not ready in time:\n" + "".join(self.log))


def _drain(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)
