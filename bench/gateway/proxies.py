"""The gateways under test: how each is installed, started and asked. Every one is a process tree pinned to one core.

Rivals are installed into a folder outside the repository, from the package registries, at the versions named here. What each
one does for a request differs; `NOTES` says how, and the table of the benchmark repeats it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.acceptance.harness import ROOT, ServiceProcess, free_port

LITELLM = "litellm[proxy]==1.109.1"
PORTKEY = {"dependencies": {"@portkey-ai/gateway": "1.15.2"}, "overrides": {"@hono/node-server": "1.11.5", "hono": "4.9.7"}}
"""The overrides, because with the newest of both the gateway answers every stream with 500."""
FERRO = "ferrogw==1.5.10"
KEY = "sk-benchmark-key-of-the-rival-0123456789"
NOTES = {
    "direct": "no proxy: upstream and generator alone",
    "aprendiz": "API key, rate limits, JSON log to a file, metrics, prediction stored durably (SQLite, fsync)",
    "litellm": "master key, no database, no stored call",
    "portkey": "no key check, no stored call, no log",
    "ferrogw": "master key, log level error, no stored call",
}


class Proxy:
    """One gateway in front of the upstream. ``start`` returns when it answers; `pids` are all its processes."""

    name = "direct"
    model = "mock"
    path = "/v1/chat/completions"

    def __init__(self, work: Path, upstream: int, core: int) -> None:
        self.work = work / self.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.upstream = upstream
        self.core = core
        self.port = upstream
        self.headers: dict[str, str] = {}
        self.start_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def installed(self) -> bool:
        """Whether it can be started."""
        return True

    def install(self) -> None:
        """Fetches it."""

    def prepare(self) -> None:
        """Whatever comes before the process: files, accounts."""

    def command(self) -> list[str] | None:
        """What to run; None: nothing."""
        return None

    def environ(self) -> dict[str, str]:
        """Its environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.work)}

    def start(self) -> None:
        self.prepare()
        command = self.command()
        if command is None:
            return
        self.port = free_port() if self.port == self.upstream else self.port
        command = [part.replace("{port}", str(self.port)) for part in command]
        environ = {name: value.replace("{port}", str(self.port)) for name, value in self.environ().items()}
        begun = time.monotonic()
        with (self.work / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", str(self.core), *command],
                cwd=self.work,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() - begun < 120:
            if self._process.poll() is not None:
                break
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{self.port}{self.path}", json=self.body(), headers=self.headers, timeout=5
                )
                if answer.status_code == 200:
                    self.start_s = time.monotonic() - begun
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        tail = (self.work / "log.txt").read_text(errors="replace")[-2000:]
        self.stop()
        raise RuntimeError(f"{self.name} did not start:\n{tail}")

    def stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def body(self, *, stream: bool = False) -> dict[str, object]:
        body: dict[str, object] = {"model": self.model, "messages": [{"role": "user", "content": "Say hello, please."}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request, for the load generator."""
        content = json.dumps(self.body(stream=stream)).encode()
        headers = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(content)), **self.headers}
        head = f"POST {self.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode() + b"\r\n" + content

    def pids(self) -> list[int]:
        """Its process and all below it."""
        if self._process is None:
            return []
        parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        tree = [self._process.pid]
        for pid in tree:
            tree += [child for child, parent in parents.items() if parent == pid]
        return tree

    def cpu_s(self) -> float:
        """User and system time of all its processes."""
        return sum(_cpu(pid) for pid in self.pids())

    def memory_mib(self) -> float:
        """Proportional share of memory of all its processes."""
        return sum(_pss(pid) for pid in self.pids()) / 1024


class Aprendiz(Proxy):
    """This service, with everything on that its users have on."""

    name = "aprendiz"
    model = "mock/mock"

    def prepare(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self._service = ServiceProcess(self.work / "data", environ=self._settings())
        with self._service as service, service.client(service.admin()) as client:
            answer = client.post("/auth/keys", json={"name": "benchmark", "scopes": ["predict"]})
            assert answer.status_code == 201, answer.text
            self.headers = {"Authorization": f"Bearer {answer.json()['key']}"}
        self.port = self._service.port

    def command(self) -> list[str]:
        return [sys.executable, "-m", "app.main"]

    def environ(self) -> dict[str, str]:
        return {**self._service.environ, "PYTHONPATH": str(ROOT)}

    def _settings(self) -> dict[str, str]:
        upstreams = {"mock": {"base_url": f"http://127.0.0.1:{self.upstream}", "models": ["*"]}}
        limits = {f"APRENDIZ_RATE_LIMITS__{name}": "9999999/minute" for name in ("PREDICT", "API", "FEEDBACK")}
        return {"APRENDIZ_PROVIDERS__UPSTREAMS": json.dumps(upstreams), **limits}


class LiteLLM(Proxy):
    """LiteLLM's proxy, as its documentation starts it."""

    name = "litellm"

    def _venv(self) -> Path:
        return self.work.parent.parent / "litellm"

    def installed(self) -> bool:
        return (self._venv() / "bin" / "litellm").exists()

    def install(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(self._venv())], check=True)
        subprocess.run([str(self._venv() / "bin" / "pip"), "install", "-q", LITELLM], check=True)

    def prepare(self) -> None:
        self.headers = {"Authorization": f"Bearer {KEY}"}
        (self.work / "config.yaml").write_text(
            "model_list:\n  - model_name: mock\n    litellm_params:\n      model: openai/mock\n"
            f"      api_base: http://127.0.0.1:{self.upstream}/v1\n      api_key: none\n"
            f"general_settings:\n  master_key: {KEY}\nlitellm_settings:\n  telemetry: false\n"
        )

    def command(self) -> list[str]:
        return [str(self._venv() / "bin" / "litellm"), "--config", "config.yaml", "--port", "{port}", "--host", "127.0.0.1"]

    def environ(self) -> dict[str, str]:
        path = f"{self._venv() / 'bin'}:{os.environ['PATH']}"
        return {**super().environ(), "PATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}


class Portkey(Proxy):
    """Portkey's open gateway on Node."""

    name = "portkey"

    def _folder(self) -> Path:
        return self.work.parent.parent / "portkey"

    def installed(self) -> bool:
        return (self._folder() / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js").exists()

    def install(self) -> None:
        self._folder().mkdir(parents=True, exist_ok=True)
        (self._folder() / "package.json").write_text(json.dumps({"private": True, **PORTKEY}))
        subprocess.run(["npm", "install", "--silent"], cwd=self._folder(), check=True)

    def prepare(self) -> None:
        self.headers = {
            "Authorization": "Bearer none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{self.upstream}/v1",
        }

    def command(self) -> list[str]:
        script = self._folder() / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", str(script), "--port={port}", "--headless"]

    def environ(self) -> dict[str, str]:
        return {**super().environ(), "NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}


class Ferro(Proxy):
    """A compiled gateway from PyPI."""

    name = "ferrogw"
    model = "gpt-4o-mini"  # it asks a provider only for models that it knows

    def _venv(self) -> Path:
        return self.work.parent.parent / "ferrogw"

    def installed(self) -> bool:
        return (self._venv() / "bin" / "ferrogw").exists()

    def install(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(self._venv())], check=True)
        subprocess.run([str(self._venv() / "bin" / "pip"), "install", "-q", FERRO], check=True)

    def prepare(self) -> None:
        self.headers = {"Authorization": f"Bearer {KEY}"}

    def command(self) -> list[str]:
        return [str(self._venv() / "bin" / "ferrogw")]

    def environ(self) -> dict[str, str]:
        return {
            **super().environ(),
            "PORT": "{port}",
            "GOMAXPROCS": "1",
            "MASTER_KEY": KEY,
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.upstream}",
            "LOG_LEVEL": "error",
            "RATE_LIMIT_RPS": "1000000",
            "RATE_LIMIT_BURST": "1000000",
        }


ALL: dict[str, type[Proxy]] = {kind.name: kind for kind in (Proxy, Aprendiz, LiteLLM, Portkey, Ferro)}


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.partition("\nPss:")[2].split()[0])
