"""Cold set-up, warm start, first answer and idle memory, as a stranger meets them.

    python3 bench/startup.py [--repeat 3] [--skip-cold]

Clones the repository's HEAD into a new folder, runs ``./run_llm.sh`` there without any cache, takes the printed invite and asks
one question; then stops it and starts it again, ``--repeat`` times. Standard library only. Prints JSON, one figure a line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PASSWORD = "violet harbour lantern 42"


def call(url: str, body: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return dict(json.loads(answer.read() or b"{}"))


def wait_for(url: str, process: subprocess.Popen[str], limit: float) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"run_llm.sh ended with {process.returncode}")
        try:
            call(url)
            return
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"{url} did not answer in {limit} s")


class Run:
    """One start of ``./run_llm.sh`` in ``folder``."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            ["./run_llm.sh", "--port", str(port)],
            cwd=folder,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=open(folder / "serve.log", "a"),  # noqa: SIM115
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)

    def since(self) -> float:
        return round(time.monotonic() - self.begun, 2)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def rss_mib(self) -> float:
        """Resident memory of the service process: ``run_llm.sh`` has replaced itself by it."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return round(int(found[1]) / 1024, 1) if found else float("nan")


def invite(run: Run) -> str:
    for _ in range(500):
        found = re.search(r"#invite=(\S+)", "".join(run.lines))
        if found:
            return found[1]
        time.sleep(0.02)
    raise SystemExit("no invite was printed")


def ask(run: Run) -> float:
    token = call(f"{run.url}/auth/token", {"username": "ada", "password": PASSWORD})["access_token"]
    begun = time.monotonic()
    answer = call(f"{run.url}/predict", {"prompt": "What is the capital of France?", "max_tokens": 32}, token)
    assert answer["text"], answer
    return round(time.monotonic() - begun, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--skip-cold", action="store_true", help="use this checkout and its environment; only warm figures")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="aprendiz-startup-"))
    environ = {**os.environ, "APRENDIZ_DATA_DIR": str(work / "data"), "PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
    figures: dict[str, Any] = {}
    run: Run | None = None
    try:
        folder = ROOT
        if not arguments.skip_cold:
            folder = work / "clone"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        run = Run(folder, environ)
        wait_for(f"{run.url}/health/live", run.process, 600)
        call(f"{run.url}/auth/register", {"username": "ada", "password": PASSWORD, "invite": invite(run)})
        ask(run)
        figures["cold_setup_to_first_answer_s"] = run.since()
        run.stop()
        ready, live, answered, memory = [], [], [], []
        for _ in range(arguments.repeat):
            run = Run(folder, environ)
            wait_for(f"{run.url}/health/live", run.process, 60)
            live.append(run.since())
            wait_for(f"{run.url}/health/ready", run.process, 60)
            ready.append(run.since())
            ask(run)
            answered.append(run.since())
            time.sleep(2)
            memory.append(run.rss_mib())
            run.stop()
        figures["warm_start_to_live_s"] = statistics.median(live)
        figures["warm_start_to_ready_s"] = statistics.median(ready)
        figures["warm_start_to_first_answer_s"] = statistics.median(answered)
        figures["idle_service_rss_mib"] = statistics.median(memory)
    finally:
        if run is not None and run.process.poll() is None:
            run.stop()
        shutil.rmtree(work, ignore_errors=True)
    for name, value in figures.items():
        print(json.dumps({"figure": name, "value": value}))


if __name__ == "__main__":
    main()
