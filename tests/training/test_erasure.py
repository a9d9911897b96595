"""An erasure that is cut off anywhere goes on: with errors at every step, and with ``kill -9`` of its process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import StorageUnavailable
from app.core.ids import uuid7
from app.core.records import FeedbackRecord, PredictionRecord, RunRecord, SnapshotRecord, SnapshotRowRecord, UserRecord
from app.core.settings import Settings
from app.core.types import Principal
from app.db.database import Database, open_database
from app.db.feedback import Feedback
from app.db.predictions import Predictions
from app.db.runs import Runs
from app.db.snapshots import Snapshots
from app.db.users import Users
from app.training.erasure import Erasure, erasure
from app.training.erasure_stores import Live

NOW = datetime(2026, 11, 23, tzinfo=UTC)
MARK = "canary7qz7mark"


class Around:
    """The running service around an erasure: jobs, what serves, caches. Notes what it was asked for."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.cancelled: list[str] = []
        self.left: list[tuple[str, ...]] = []
        self.forgotten = 0
        self.unremembered: list[str] = []

    async def cancel(self, run_id: str, *, actor: Principal | None) -> RunRecord:
        self.cancelled.append(run_id)
        ended = await self.runs.update(run_id, state="cancelled", ended_at=NOW)
        assert ended is not None
        return ended

    async def leave(self, adapters: Sequence[str], *, actor: Principal | None) -> Mapping[str, str]:
        self.left.append(tuple(adapters))
        return {"default": "base"}

    async def forget_all_answers(self) -> None:
        self.forgotten += 1

    async def recollections(self, user_id: str) -> None:
        self.unremembered.append(user_id)

    def live(self) -> Live:
        return Live(self, self, self, lambda user_id: None, self.recollections)


async def person(database: Database, settings: Settings, *, state: str = "succeeded") -> tuple[str, str, str]:
    """A person with an answer, a correction, a snapshot and a run with files; ids of the person, the snapshot, the run."""
    user = UserRecord(uuid7(), f"{MARK}-{uuid7()[-6:]}", "user", "hash", NOW)
    await Users(database).create(user)
    asked = {"messages": [{"role": "user", "content": MARK * 400}], "sampling": {}}
    answer = PredictionRecord(uuid7(), user.id, NOW, "echo", "echo", "v", asked, MARK, "stop", 1, 1, 0.0, None, 1.0)
    await Predictions(database).add(answer)
    said, _ = await Feedback(database).store(FeedbackRecord(uuid7(), answer.id, user.id, NOW, user_id=user.id, correction=MARK))
    snapshot = SnapshotRecord(uuid7(), NOW, None, "d", "feedback", {}, {"seen": MARK})
    row = SnapshotRowRecord(snapshot.id, 0, "train", "sft", "g", 1.0, said.id, answer.id, user.id, user.id)
    await Snapshots(database).add(snapshot, [row])
    run = RunRecord(uuid7(), NOW, None, "succeeded", "done", "sft", "never", {}, snapshot_id=snapshot.id, version="trained")
    await Runs(database).add(replace(run, state=state))  # type: ignore[arg-type]
    for kind, name in (("snapshots", snapshot.id), ("runs", run.id), ("adapters", run.id)):
        folder = settings.data_dir / kind / name
        folder.mkdir(parents=True)
        (folder / "file").write_text(MARK)
    return user.id, snapshot.id, run.id


def left(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()
    ]


async def test_a_run_in_progress_is_cancelled_and_retired_and_what_serves_leaves_it(
    settings: Settings, sqlite: Database
) -> None:
    user, snapshot, run = await person(sqlite, settings, state="running")
    around = Around(Runs(sqlite))
    report = await erasure(settings, sqlite, around.live()).erase(user, actor=None)
    assert around.cancelled == [run]
    assert around.left == [(run,)]
    assert around.forgotten == 1
    assert (report.serves, report.versions, report.complete) == ({"default": "base"}, ("trained",), True)
    found = await Runs(sqlite).get(run)
    assert found is not None
    assert found.retired_at is not None
    kept = await Snapshots(sqlite).get(snapshot)
    assert kept is not None
    assert (kept.report, kept.erased_at is not None) == ({"erased": True}, True)
    assert await Snapshots(sqlite).rows(snapshot) == []
    assert left(settings.data_dir) == []


async def test_a_snapshot_without_a_row_goes_too_for_nobody_knows_whose_words_it_holds(
    settings: Settings, sqlite: Database
) -> None:
    user, _, _ = await person(sqlite, settings)
    old, fresh = (settings.data_dir / "snapshots" / uuid7() for _ in range(2))
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "train.jsonl").write_text("somebody's words")
    os.utime(old, (time.time() - 120, time.time() - 120))
    await erasure(settings, sqlite, None).erase(user, actor=None)
    assert not old.exists()
    assert fresh.exists()  # its row may be on its way


STEPS = [
    ("runs", "of_snapshots"), ("people", "lent"), ("runs", "update"), ("snapshots", "set_report"), ("people", "counts"),
    ("people", "blank_answers"), ("users", "delete"), ("people", "strip_lineage"), ("disk", "compact"), ("audit", "add"),
]  # fmt: skip


@pytest.mark.parametrize(("store", "step"), STEPS)
async def test_what_fails_at_any_step_is_finished_the_next_time(
    settings: Settings, sqlite: Database, monkeypatch: pytest.MonkeyPatch, store: str, step: str
) -> None:
    user, _, run = await person(sqlite, settings)
    around = Around(Runs(sqlite))
    work = erasure(settings, sqlite, around.live())

    async def broken(*args: Any, **more: Any) -> Any:
        raise StorageUnavailable("broken")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(work._stores, store), step, broken)
        with pytest.raises(StorageUnavailable):
            await work.erase(user, actor=None)
    fresh = erasure(settings, sqlite, around.live())  # as the next start has it
    await fresh._resume()
    assert left(settings.data_dir) == []
    assert await Users(sqlite).get(user) is None
    found = await Runs(sqlite).get(run)
    assert found is not None
    assert found.retired_at is not None
    assert not list((settings.data_dir / "erasures").iterdir())


async def test_one_that_cannot_go_on_holds_up_no_other(
    settings: Settings, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = [(await person(sqlite, settings))[0] for _ in range(2)]
    work = erasure(settings, sqlite, Around(Runs(sqlite)).live())
    lent = work._stores.people.lent

    async def broken(user_id: str) -> list[str]:
        if user_id == stuck or not going_on:
            raise StorageUnavailable("broken")
        return await lent(user_id)

    going_on = False
    monkeypatch.setattr(work._stores.people, "lent", broken)
    for user in (stuck, other):
        with pytest.raises(StorageUnavailable):
            await work.erase(user, actor=None)
    going_on = True
    await work._resume()
    assert (await Users(sqlite).get(stuck) is None, await Users(sqlite).get(other) is None) == (False, True)


async def test_a_snapshot_that_was_being_made_meanwhile_is_found_afterwards(settings: Settings, sqlite: Database) -> None:
    user, _, _ = await person(sqlite, settings)
    work: Erasure = erasure(settings, sqlite, Around(Runs(sqlite)).live())
    await work.erase(user, actor=None)
    late = SnapshotRecord(uuid7(), NOW, None, "d", "feedback", {}, {"seen": MARK})
    await Snapshots(sqlite).add(late, [SnapshotRowRecord(late.id, 0, "train", "sft", "g", 1.0, user_id=user)])
    folder = settings.data_dir / "snapshots" / late.id
    folder.mkdir()
    (folder / "train.jsonl").write_text(MARK)
    await work._resume()
    assert not folder.exists()
    found = await Snapshots(sqlite).get(late.id)
    assert found is not None
    assert found.erased_at is not None


CHILD = """
import asyncio, sys
from pathlib import Path
from app.core.settings import Settings
from app.db.database import open_database
from app.db.runs import Runs
from app.training.erasure import erasure
from tests.training.test_erasure import Around

async def main():
    settings = Settings(data_dir=Path(sys.argv[1]))
    database = open_database(settings)
    await database.open()
    work = erasure(settings, database, Around(Runs(database)).live())
    print("ready", flush=True)
    await work.erase(sys.argv[2], actor=None)
asyncio.run(main())
"""


async def test_it_goes_on_after_kill_9_at_any_point(settings: Settings) -> None:
    chance = random.Random(5)
    for _ in range(4):
        database = open_database(settings)
        await database.open()
        user, _, run = await person(database, settings)
        await database.aclose()
        command = [sys.executable, "-c", CHILD, str(settings.data_dir), user]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:  # noqa: ASYNC220
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.08))  # noqa: ASYNC251
            os.kill(child.pid, signal.SIGKILL)
        database = open_database(settings)
        await database.open()
        begun = list((settings.data_dir / "erasures").glob("*.json"))
        work = erasure(settings, database, Around(Runs(database)).live())
        if begun:
            await work._resume()
        elif await Users(database).get(user) is not None:
            await work.erase(user, actor=None)
        found = await Runs(database).get(run)
        assert found is not None
        assert found.retired_at is not None
        await database.aclose()
        assert left(settings.data_dir) == []
