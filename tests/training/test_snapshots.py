"""Snapshots from a real database: what goes in, on which side it stands, what the files and the report say."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import Conflict, TooLittleFeedback
from app.core.records import SnapshotRecord, UserRecord
from app.core.settings import Settings
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.snapshots import Snapshots
from app.training.snapshots import SnapshotBuilder, SnapshotConfig, choose_method, snapshot_folder, verify
from tests.db import make
from tests.db.make import NOW


@pytest.fixture
def builder(sqlite: Database, settings: Settings) -> SnapshotBuilder:
    return SnapshotBuilder(feedback=Feedback(sqlite), snapshots=Snapshots(sqlite), settings=settings)


async def corrected(database: Database, user: UserRecord, prompt: str, correction: str = "", **more: Any) -> str:
    """A prediction with a correction on it; the feedback's id."""
    said = await make.stored_prediction(
        database, user.id, input={"messages": [{"role": "user", "content": prompt}]}, output=f"bad answer to {prompt}"
    )
    given = make.feedback(said.id, user.id, correction=correction or f"good answer to {prompt}", **{"rating": None, **more})
    return (await Feedback(database).store(given))[0].id


async def rated(database: Database, user: UserRecord, prompt: str, rating: str, answer: str, number: int = 0) -> str:
    said = await make.stored_prediction(
        database, user.id, input={"messages": [{"role": "user", "content": prompt}]}, output=answer
    )
    at = NOW + timedelta(minutes=number)
    return (await Feedback(database).store(make.feedback(said.id, user.id, rating=rating, created_at=at)))[0].id


def lines(settings: Settings, snapshot: SnapshotRecord, name: str) -> list[dict[str, Any]]:
    text = (snapshot_folder(settings, snapshot.id) / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


async def test_corrections_and_ratings_become_a_snapshot(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    users = [await make.stored_user(sqlite) for _ in range(4)]
    for number in range(48):
        await corrected(sqlite, users[number % 4], f"question {number}")
    for number in range(200):
        answer = "yes" if number % 2 else "no"
        await rated(
            sqlite, users[number % 4], f"query {number % 50}", "up" if number % 2 else "down", f"{answer} {number}", number
        )
    snapshot = await builder.build(SnapshotConfig(), actor=None)
    report = snapshot.report
    assert choose_method(report) == "sft"
    assert (
        report["rows"]["sft"] == {"train": 38, "heldout": 10, "quarantined": 0, "folded": 0}
        or report["rows"]["sft"]["heldout"] >= 10
    )
    assert report["methods"]["kto"]["ready"]
    train, heldout = lines(settings, snapshot, "train"), lines(settings, snapshot, "heldout")
    assert not {row["group"] for row in train} & {row["group"] for row in heldout}
    assert len(train) + len(heldout) == 248
    row = next(row for row in train if row["kind"] == "sft")
    assert row["completion"][0]["content"].startswith("good answer")
    assert row["original"][0]["content"].startswith("bad answer")
    assert set(row) == {"kind", "prompt", "completion", "original", "weight", "group", "position"}
    manifest = verify(snapshot, snapshot_folder(settings, snapshot.id))
    assert manifest["digest"] == snapshot.digest
    rows = await Snapshots(sqlite).rows(snapshot.id)
    assert [each.position for each in rows] == list(range(248))
    assert all(each.feedback_id and each.prediction_id and each.user_id and each.rater for each in rows)
    for path in (snapshot_folder(settings, snapshot.id), *snapshot_folder(settings, snapshot.id).iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    assert "question" not in json.dumps(report)
    again = await builder.build(SnapshotConfig(), actor=None)
    assert again.digest == snapshot.digest
    assert not list(settings.data_dir.glob("snapshots/.*"))


async def test_too_little_feedback_says_how_much_is_missing(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    user = await make.stored_user(sqlite)
    for number in range(12):
        await corrected(sqlite, user, f"question {number}")
    with pytest.raises(
        TooLittleFeedback, match=r"sft: 7 more corrections to train on \(9 of 16\), 2 more prompts held out \(3 of 5\)"
    ):
        await builder.build(SnapshotConfig(), actor=None)
    assert not list(settings.data_dir.glob("snapshots/*"))


async def test_a_damaged_snapshot_is_refused(sqlite: Database, settings: Settings, builder: SnapshotBuilder) -> None:
    user = await make.stored_user(sqlite)
    for number in range(30):
        await corrected(sqlite, user, f"question {number}")
    snapshot = await builder.build(SnapshotConfig(), actor=None)
    folder: Path = snapshot_folder(settings, snapshot.id)
    data = bytearray((folder / "train.jsonl").read_bytes())
    data[50] ^= 1
    (folder / "train.jsonl").write_bytes(data)
    with pytest.raises(Conflict, match="damaged"):
        verify(snapshot, folder)
