"""Stands for the trainer in tests: a real process with the same folder, lock, events and exit codes, without a model.

``python fake_trainer.py OPTIONS FOLDER``; OPTIONS is a JSON object:

- ``steps`` (20), ``step_s`` (0.02): how much it does; each step is a checkpoint;
- ``crash_at``: dies by SIGKILL in that step, ``crashes`` (1) times; ``fail``: fails with these words; ``say``: prints them;
- ``stubborn``: takes no SIGTERM; ``garbage``: writes lines that are no events; ``exit``: leaves with this status at once.

It counts its steps in ``count``, so that a test sees whether it runs, and every life adds a line to ``lives``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from app.training.lock import RUN_LOCK, RunLock


class Stopped(Exception):
    """SIGTERM came."""


def main(options: dict[str, Any], folder: Path) -> int:
    lock = RunLock(folder / RUN_LOCK)
    if not lock.acquire():
        return 4
    with (folder / "lives").open("a") as lives:
        lives.write(f"{os.getpid()}\n")
    if "say" in options:
        for _ in range(options.get("say_times", 1)):
            print(options["say"], flush=True)
    if "exit" in options:
        return int(options["exit"])
    job = json.loads((folder / "job.json").read_text())
    if job["run_id"] != folder.name or job["config"]["method"] == "auto":
        return fail(folder, "job.json is not valid")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.get("stubborn") else stop)
    try:
        return train(options, folder, job)
    except Stopped:
        event(folder, "cancelled")
        return 3


def train(options: dict[str, Any], folder: Path, job: dict[str, Any]) -> int:
    event(folder, "phase", phase="prepare")
    if "fail" in options:
        return fail(folder, options["fail"])
    if options.get("garbage"):
        with (folder / "events.jsonl").open("ab") as file:
            file.write(
                b'not json\n[1,2]\n{"event": NaN}\n{"event": "step", "step": "many"}\n\xff\xfe\n' + b"x" * 300_000 + b"\n"
            )
    event(folder, "phase", phase="train")
    first = int((folder / "count").read_text()) if (folder / "count").exists() else 0
    if first:
        event(folder, "resumed", step=first)
    steps = int(options.get("steps", 20))
    for step in range(first + 1, steps + 1):
        time.sleep(options.get("step_s", 0.02))
        crash(options, folder, step)
        (folder / "count.new").write_text(str(step))
        (folder / "count.new").replace(folder / "count")
        left = (steps - step) * options.get("step_s", 0.02)
        figures = {"step": step, "steps": steps, "loss": 3 / step, "tokens": 100 * step, "tokens_per_s": 100.0, "eta_s": left}
        event(folder, "step", learning_rate=1e-3, grad_norm=1.0, **figures)
    event(folder, "phase", phase="export")
    finish(folder, job)
    event(folder, "done")
    return 0


def crash(options: dict[str, Any], folder: Path, step: int) -> None:
    if step != options.get("crash_at"):
        return
    if len((folder / "lives").read_text().splitlines()) <= options.get("crashes", 1):
        os.kill(os.getpid(), signal.SIGKILL)


def finish(folder: Path, job: dict[str, Any]) -> None:
    adapter = Path(job["adapters"]) / job["run_id"]
    adapter.mkdir(exist_ok=True)
    weights = json.dumps(job["config"]).encode()
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = {"adapter_hash": hashlib.sha256(weights).hexdigest(), "adapter": str(adapter), "rows": 1, "seconds": 1.0}
    (folder / "result.json.new").write_text(json.dumps(result))
    (folder / "result.json.new").replace(folder / "result.json")


def fail(folder: Path, words: str) -> int:
    event(folder, "failed", detail=words)
    return 2


def stop(_number: int, _frame: object) -> None:
    raise Stopped


def event(folder: Path, name: str, **fields: Any) -> None:
    line = json.dumps({"at": datetime.now(UTC).isoformat(), "event": name, **fields}) + "\n"
    with (folder / "events.jsonl").open("ab") as file:
        file.write(line.encode())


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
