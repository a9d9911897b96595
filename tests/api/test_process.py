"""Start, memory and end of the service process."""

from __future__ import annotations

import json
import signal
import socket as socketlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.acceptance.harness import ServiceProcess
from tests.api.events import read_events

MB = 1 << 20


def service(
    folder: Path, *, model: str = "echo", grace_s: int = 2, module: str = "app.main", port: int | None = None
) -> ServiceProcess:
    environ = {"APRENDIZ_SERVER__GRACE_S": str(grace_s)}
    return ServiceProcess(folder / "data", port=port, model=model, module=module, environ=environ)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[ServiceProcess]:
    with service(tmp_path, model="slow") as process:
        yield process


def test_start_memory_and_a_huge_body(tmp_path: Path) -> None:
    with service(tmp_path) as process, process.client(process.admin()) as client:
        assert client.post("/predict", json={"prompt": "hello"}).status_code == 200
        assert process.rss() < 150 * MB

        def chunks() -> Iterator[bytes]:
            yield b'{"prompt":"'
            for _ in range(600):
                yield b"a" * 1_000_000

        before = process.peak()
        answer = client.post("/predict", content=chunks(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert process.peak() - before < 32 * MB
        assert client.post("/predict", json={"prompt": "hello"}).status_code == 200
        process.terminate()
        assert process.wait(10) == 0
    lines = [json.loads(line) for line in process.log]
    assert all({"ts", "level", "logger", "message"} <= set(line) for line in lines)
    assert not [line for line in lines if line["level"] == "error"]
    asked = [line for line in lines if line.get("route") == "/predict"]
    assert all(line["request_id"] for line in asked)


def stream(process: ServiceProcess, headers: dict[str, str], prompt: str) -> tuple[threading.Thread, list[str]]:
    """Reads a stream in a thread; the text is in the list at the end."""
    found: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with (
            process.client(headers) as client,
            client.stream("POST", "/predict", json={"prompt": prompt, "stream": True}) as answer,
        ):
            text = ""
            for chunk in answer.iter_text():
                text += chunk
                begun.set()
            found.append(text)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    return thread, found


def test_sigterm_drains(slow: ServiceProcess) -> None:
    headers = slow.admin()
    short, short_text = stream(slow, headers, "word " * 40)
    long, long_text = stream(slow, headers, "word " * 1000)
    address = f"ws://127.0.0.1:{slow.port}/predict/ws"
    with connect(address, additional_headers=headers) as socket, slow.client(headers) as other:
        assert other.get("/health/ready").status_code == 200
        slow.terminate()
        began = time.monotonic()
        while other.get("/health/ready").status_code == 200:
            assert time.monotonic() - began < 1
        assert other.get("/health/live").status_code == 200
        refused = other.post("/predict", json={"prompt": "too late"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert slow.wait(7) == 0
    short.join(5)
    long.join(5)
    assert read_events(short_text[0])[-1][0] == "done"
    name, problem = read_events(long_text[0])[-1]
    assert name == "problem"
    assert problem["type"] == "urn:aprendiz:problem:shutting-down"


def test_a_second_signal_is_fast(tmp_path: Path) -> None:
    with service(tmp_path, model="slow", grace_s=60) as process:
        thread, text = stream(process, process.admin(), "word " * 1500)
        process.terminate()
        time.sleep(0.5)
        assert process.process.poll() is None
        began = time.monotonic()
        process.process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 6
        thread.join(5)
        assert read_events(text[0])[-1][0] == "problem"


def test_idle_it_ends_at_once(tmp_path: Path) -> None:
    with service(tmp_path, grace_s=60) as process, process.client() as client:
        client.get("/health/live")
        process.terminate()
        assert process.wait(5) == 0


def test_the_old_entry_point_serves_the_same_and_says_so_once(tmp_path: Path) -> None:
    with service(tmp_path, module="app.llm_api") as process:
        with process.client(process.admin()) as client:
            assert client.post("/predict", json={"prompt": "hello"}).json()["text"] == "hello"
        process.terminate()
        assert process.wait(10) == 0
    log = "".join(process.log)
    assert log.count("DeprecationWarning: app.llm_api is deprecated") == 1
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["level"] for line in lines if "deprecated" in line["message"]] == ["warning"]


def test_a_taken_port_is_an_error_of_one_line(tmp_path: Path) -> None:
    with socketlib.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = service(tmp_path, port=port)
        with pytest.raises(AssertionError):
            process.start()
    assert "".join(process.log).startswith(f"Cannot listen on 127.0.0.1 port {port}")
    assert not (tmp_path / "data" / "aprendiz.db").exists()
