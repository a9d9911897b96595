"""kill -9 of the service and of the trainer during a run: the run goes on and ends, and the adapter is the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.training.folders import Folders
from app.training.lock import RUN_LOCK, holder
from tests.acceptance.harness import ServiceProcess, free_port
from tests.training.tiny import make_base, sft_rows

MODULE = "tests.acceptance.training_service"


def service(data: Path, port: int, **environ: str) -> ServiceProcess:
    return ServiceProcess(data, port=port, module=MODULE, environ=environ)


@contextlib.contextmanager
def children_ended(data: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for folder in (data / "runs").glob("*-*"):
            who = holder(folder / RUN_LOCK)
            if who is not None:
                os.kill(who.pid, signal.SIGKILL)


def order(running: ServiceProcess, headers: dict[str, str], **body: Any) -> str:
    with running.client(headers) as client:
        answer = client.post("/training/runs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def run(running: ServiceProcess, headers: dict[str, str], run_id: str) -> dict[str, Any]:
    with running.client(headers) as client:
        answer = client.get(f"/training/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until(what: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ended(running: ServiceProcess, headers: dict[str, str], run_id: str, timeout_s: float = 120) -> dict[str, Any]:
    until(lambda: run(running, headers, run_id)["state"] not in ("queued", "running"), timeout_s)
    return run(running, headers, run_id)


def test_a_run_outlives_a_killed_service(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    with children_ended(data):
        first = service(data, port, TRAINING_STEP_S="0.05").start()
        headers = first.admin()
        run_id = order(first, headers)
        count = Folders(data).run(run_id) / "count"
        until(count.exists)
        first.kill()
        made = int(count.read_text())
        until(lambda: int(count.read_text()) > made + 3)
        with service(data, port, TRAINING_STEP_S="0.05") as second:
            done = ended(second, headers, run_id)
    assert done["state"] == "succeeded"
    assert len((data / "runs" / run_id / "lives").read_text().split()) == 1


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A data directory with a tiny model and rows to train it on."""
    pytest.importorskip("torch")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    make_base(data / "tiny")
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sft_rows(24)))
    return data


CONFIG: dict[str, Any] = {"rank": 4, "batch": 4, "epochs": 6, "checkpoint_s": 0, "max_tokens": 128, "rehearsal": 0}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(600)
def test_the_real_trainer_killed_once(tiny: Path) -> None:
    data = tiny
    with children_ended(data), service(data, free_port()) as running:
        headers = running.admin()
        run_id = order(running, headers, method="sft", config=CONFIG)
        checkpoints = Folders(data).run(run_id) / "checkpoints"
        until(lambda: checkpoints.is_dir() and any(checkpoints.iterdir()), 200)
        kill(data, run_id)
        done = ended(running, headers, run_id, 300)
    assert done["state"] == "succeeded", done["error"]
    assert done["progress"]["step"] == done["progress"]["steps"] == 36
    assert (data / "adapters" / run_id / "adapter_model.safetensors").is_file()


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_trainer_killed_at_twenty_random_points(tiny: Path) -> None:
    """One run undisturbed, then one whose child and whose service are killed in turn; both give the same adapter."""
    data, chance, port = tiny, random.Random(2), free_port()
    config = {**CONFIG, "epochs": 60}
    with children_ended(data):
        running = service(data, port).start()
        try:
            headers = running.admin()
            calm = ended(running, headers, order(running, headers, method="sft", config=config), 600)
            assert calm["state"] == "succeeded", calm["error"]
            run_id = order(running, headers, method="sft", snapshot=calm["snapshot"], config=config)
            steps, killed = 0, 0
            while killed < 20 and not (Folders(data).run(run_id) / "result.json").exists():
                # Each life may come further than the last: a run that never does is given up, rightly.
                further(running, headers, run_id, steps)
                steps = progress(running, headers, run_id)
                time.sleep(chance.uniform(0, 1))
                killed += kill(data, run_id)
                if killed % 2:
                    running.kill()
                    running = service(data, port).start()
            done = ended(running, headers, run_id, 600)
        finally:
            running.stop()
    assert killed >= 10
    assert done["state"] == "succeeded", done["error"]
    assert done["adapter"] == calm["adapter"]


def further(running: ServiceProcess, headers: dict[str, str], run_id: str, steps: int) -> None:
    until(lambda: progress(running, headers, run_id) > steps, 200)


def kill(data: Path, run_id: str) -> bool:
    """SIGKILL to the child, if it lives."""
    who = holder(Folders(data).run(run_id) / RUN_LOCK)
    if who is not None:
        os.kill(who.pid, signal.SIGKILL)
    return who is not None


def progress(running: ServiceProcess, headers: dict[str, str], run_id: str) -> int:
    """Steps made; a run that has ended has made more than any number."""
    found = run(running, headers, run_id)
    return int(found["progress"].get("step", 0)) if found["state"] in ("queued", "running") else 1 << 30


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_loop_with_nothing_replaced(tiny: Path) -> None:
    """Feedback over HTTP, snapshot, the real trainer, the real gate on two real engines; a model of noise passes no gate."""
    (tiny / "models").mkdir(mode=0o700)
    base = (tiny / "tiny").rename(tiny / "models" / "tinybase")
    environ = {
        "APRENDIZ_TRAINING__REVIEW": "none",
        "APRENDIZ_MODEL__CONTEXT_TOKENS": "512",
        "APRENDIZ_RATE_LIMITS__ENABLED": "false",
    }
    rules = {"floors": {"sft": 4, "groups": 2}, "most_per_person": 1.0, "quarantine": False}
    with children_ended(tiny), ServiceProcess(tiny, provider="hf", model=str(base), environ=environ) as running:
        headers = running.admin()
        with running.client(headers) as client:
            for at in range(30):
                question = {"prompt": f"Say {at} again and {at * 7} too, friend number {at}", "max_tokens": 4}
                told = client.post("/predict", json=question, timeout=120).json()
                body = {"prediction_id": told["id"], "correction": "one two three"}
                assert client.post("/feedback", json=body).status_code == 201
            before = client.get("/model").json()["version"]
        config = {"rank": 4, "epochs": 3, "max_tokens": 256}
        run_id = order(running, headers, method="sft", promote="if_passed", rules=rules, config=config)
        done = ended(running, headers, run_id, 800)
        with running.client(headers) as client:
            assert client.get("/model").json()["version"] == before
            assert "<svg" in client.get(f"/training/runs/{run_id}/report?format=html").text
    assert (done["state"], done["gate"]["verdict"]) == ("succeeded", "fail"), done["error"]
    assert {check["name"]: check["passed"] for check in done["gate"]["checks"]}["gain"] is False
    assert done["version"] not in (None, before)
