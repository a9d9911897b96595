"""kill -9 during feedback: nothing acknowledged is lost, nothing is stored twice (B3)."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
import uuid
from pathlib import Path

import httpx
import pytest

from tests.acceptance.harness import ServiceProcess, free_port, predict

WRITERS = 4


class Writer(threading.Thread):
    """Posts feedback as fast as it is acknowledged, retries what was not, and keeps a log of both."""

    def __init__(self, url: str, headers: dict[str, str], prediction: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.headers, self.prediction, self.stop_event = url, headers, prediction, stop
        self.acknowledged: dict[str, str] = {}
        self.sent: list[str] = []
        self.refused: list[str] = []
        self.pending: str | None = None

    def run(self) -> None:
        with httpx.Client(timeout=10) as client:
            while not self.stop_event.is_set():
                key = self.pending or uuid.uuid4().hex
                self.pending = key
                self.sent.append(key)
                body = {"prediction_id": self.prediction, "comment": f"note {key}"}
                try:
                    answer = client.post(f"{self.url}/feedback", json=body, headers={**self.headers, "Idempotency-Key": key})
                except httpx.TransportError:
                    time.sleep(0.02)
                    continue
                if answer.status_code == 201:
                    self.acknowledged[key] = answer.json()["id"]
                    self.pending = None
                elif answer.status_code in (502, 503):
                    time.sleep(0.02)
                else:
                    self.refused.append(answer.text)
                    self.pending = None


def rounds(data: Path, count: int, *, seed: int) -> tuple[int, int]:
    """Runs ``count`` kills; returns how many feedbacks were acknowledged, and how many stored without acknowledgement."""
    chance = random.Random(seed)
    port = free_port()
    limits = {"APRENDIZ_RATE_LIMITS__ENABLED": "false"}
    service = ServiceProcess(data, port=port, environ=limits).start()
    headers = service.admin()
    predictions = [predict(service.url, headers).json()["id"] for _ in range(WRITERS)]
    stop = threading.Event()
    writers = [Writer(service.url, headers, prediction, stop) for prediction in predictions]
    for writer in writers:
        writer.start()
    try:
        for _ in range(count):
            time.sleep(chance.uniform(0.05, 0.4))
            service.kill()
            service = ServiceProcess(data, port=port, environ=limits).start()
        time.sleep(0.3)
    finally:
        stop.set()
        for writer in writers:
            writer.join(20)
        service.stop()
    assert [text for writer in writers for text in writer.refused] == []
    with contextlib.closing(sqlite3.connect(data / "aprendiz.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = database.execute("SELECT idempotency_key, id FROM feedback").fetchall()
    stored = dict(rows)
    assert len(stored) == len(rows), "a key was stored twice"
    acknowledged = {key: each for writer in writers for key, each in writer.acknowledged.items()}
    lost = {key for key in acknowledged if stored.get(key) != acknowledged[key]}
    assert lost == set()
    return len(acknowledged), len(set(stored) - set(acknowledged))


def test_two_kills_lose_nothing(tmp_path: Path) -> None:
    acknowledged, _ = rounds(tmp_path / "data", 2, seed=1)
    assert acknowledged > 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    acknowledged, unacknowledged = rounds(tmp_path / "data", 100, seed=2)
    print(f"100 kills: {acknowledged} acknowledged, 0 lost, {unacknowledged} stored without an acknowledgement")
    assert acknowledged > 500
