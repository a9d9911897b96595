"""Durable writes per second: predictions stored through the group commit, by how many callers wait at once.

    .venv/bin/python -m bench.commits [--seconds 3] [--folder .]

A real SQLite file with ``synchronous=FULL`` in ``--folder`` (a disk, not a tmpfs). Each caller stores one
prediction, waits until it is durable, and goes on. "rows per commit" shows how many shared one fsync.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from app.core.ids import uuid7
from app.core.metrics import Metrics
from app.core.records import PredictionRecord, UserRecord
from app.core.settings import Settings
from app.db.database import open_database
from app.db.predictions import Predictions
from app.db.users import Users


async def run(folder: Path, callers: int, seconds: float) -> str:
    metrics = Metrics()
    database = open_database(Settings(data_dir=folder), metrics)
    await database.open()
    user = UserRecord(uuid7(), f"bench{callers}", "user", "", datetime.now(UTC))
    await Users(database).create(user)
    predictions = Predictions(database)
    messages = [{"role": "user", "content": "What is the capital of France? " * 8}]
    model = PredictionRecord(
        "",
        user.id,
        datetime.now(UTC),
        "echo",
        "echo",
        "v",
        {"messages": messages},
        "Paris. " * 40,
        "stop",
        60,
        80,
        0.1,
        20.0,
        900.0,
    )
    end = time.monotonic() + seconds
    stored = 0

    async def caller() -> None:
        nonlocal stored
        while time.monotonic() < end:
            await predictions.add(dataclasses.replace(model, id=uuid7()))
            stored += 1

    cpu, begun = time.process_time(), time.monotonic()
    await asyncio.gather(*(caller() for _ in range(callers)))
    took, used = time.monotonic() - begun, time.process_time() - cpu
    commits = metrics.registry.get_sample_value("aprendiz_db_commit_tasks_count") or 1
    await database.aclose()
    return f"| {callers} | {stored / took:,.0f} | {stored / commits:.1f} | {used / stored * 1e6:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    print("| callers | rows/s | rows per commit | CPU µs/row |\n|---|---|---|---|")
    for callers in (1, 8, 64):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(asyncio.run(run(Path(folder), callers, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
