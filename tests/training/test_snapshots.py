"""Snapshots from a real database: what goes in, on which side it stands, what the files and the report say."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import Conflict, StorageFull, TooLittleFeedback
from app.core.records import SnapshotRecord, SnapshotRowRecord, UserRecord
from app.core.settings import Settings
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.snapshots import Snapshots
from app.training.assembly import Assembly
from app.training.snapshots import Floors, SnapshotBuilder, SnapshotConfig, choose_method, snapshot_folder, verify
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
    assert report["rows"]["sft"]["heldout"] >= 10
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


FEW = SnapshotConfig(floors=Floors(sft=1, dpo=1, kto=2, kto_each=1, groups=1))


async def test_only_what_review_allows_trains_and_in_the_reviewers_words(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    user, repository = await make.stored_user(sqlite), Feedback(sqlite)
    for number in range(8):
        await corrected(sqlite, user, f"question {number}")
    said = await make.stored_prediction(sqlite, user.id, input={"messages": [{"role": "user", "content": "secret question"}]})
    token = (
        await repository.store(
            make.feedback(said.id, f"token:{said.id}", user_id=None, rating="up", correction="a stranger's words")
        )
    )[0]
    rejected = await corrected(sqlite, user, "another question", "nonsense")
    await repository.review(rejected, "rejected", reviewer=None, now=NOW)
    snapshot = await builder.build(FEW, actor=None)
    assert snapshot.report["feedback"] == {"read": 10, "rejected": 1, "waiting": 1, "context": 0, "without_rows": 0}
    text = _all_text(settings, snapshot)
    assert "stranger" not in text
    assert "nonsense" not in text
    assert [row.kind for row in await Snapshots(sqlite).rows(snapshot.id) if row.feedback_id == token.id] == ["kto"]
    await repository.review(token.id, "approved", edited="the reviewer's words", reviewer=user.id, now=NOW)
    text = _all_text(settings, await builder.build(FEW, actor=None))
    assert "the reviewer's words" in text
    assert "stranger" not in text


def _all_text(settings: Settings, snapshot: SnapshotRecord) -> str:
    return "".join(path.read_text() for path in snapshot_folder(settings, snapshot.id).glob("*.jsonl"))


async def test_secrets_are_set_aside_until_an_admin_approves(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    user, repository = await make.stored_user(sqlite), Feedback(sqlite)
    for number in range(8):
        await corrected(sqlite, user, f"question {number}")
    key = "ghp_" + "a1B2" * 9
    bad = await corrected(sqlite, user, "which token?", f"use {key} or write to me@example.org")
    snapshot = await builder.build(FEW, actor=None)
    assert key not in _all_text(settings, snapshot)
    assert key not in json.dumps(snapshot.report)
    assert snapshot.report["quarantine"]["secret"]["examples"] == [
        {"position": 8, "feedback_id": bad, "reason": "looks like a secret (api_key)"}
    ]
    assert snapshot.report["scan"]["email"] == {"rows": 1, "found": 1, "positions": [8]}
    row = next(row for row in await Snapshots(sqlite).rows(snapshot.id) if row.feedback_id == bad)
    assert (row.split, row.reason) == ("quarantined", "secret: looks like a secret (api_key)")
    first = (await repository.queue())[0]
    assert (first[0].id, first[3]) == (bad, row.reason)
    await repository.review(bad, "approved", reviewer=user.id, now=NOW)
    assert key in _all_text(settings, await builder.build(FEW, actor=None))


async def test_a_prompt_that_was_held_out_is_never_trained_on(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    user = await make.stored_user(sqlite)
    held: set[str] = set()
    for step in range(6):
        for number in range(6):
            await corrected(sqlite, user, f"question {step} {number}")
        snapshot = await builder.build(
            FEW.model_copy(update={"seed": step % 2, "holdout": 0.3 if step % 2 else 0.2}), actor=None
        )
        rows = await Snapshots(sqlite).rows(snapshot.id)
        trained = {row.group for row in rows if row.split == "train"}
        assert not held & trained
        held |= {row.group for row in rows if row.split == "heldout"}
    other = await make.stored_user(sqlite)
    prompt = next(row["prompt"][0]["content"] for row in lines(settings, snapshot, "heldout"))
    await corrected(sqlite, other, prompt.upper() + "?", "said by another person later")
    assert "another person" in str(lines(settings, await builder.build(FEW, actor=None), "heldout"))


async def test_the_same_said_twice_counts_once(sqlite: Database, settings: Settings, builder: SnapshotBuilder) -> None:
    one, two = await make.stored_user(sqlite), await make.stored_user(sqlite)
    for user in (one, one, one, two):
        await corrected(sqlite, user, "the same", "the answer")
    for number in range(8):
        await corrected(sqlite, one, f"question {number}")
    snapshot = await builder.build(FEW, actor=None)
    assert snapshot.report["rows"]["sft"]["folded"] == 2
    folded = [row for row in await Snapshots(sqlite).rows(snapshot.id) if row.split == "folded"]
    assert {(row.rater, row.reason) for row in folded} == {(one.id, "duplicate: the same person said exactly this before")}


async def test_votes_by_token_are_one_persons_whose_account_asked(sqlite: Database, builder: SnapshotBuilder) -> None:
    flooder, *others = [await make.stored_user(sqlite) for _ in range(4)]
    repository = Feedback(sqlite)
    for number in range(200):
        at = NOW + timedelta(minutes=number)
        for prompt in (f"question {number % 100}", f"request {number}"):
            asked = {"messages": [{"role": "user", "content": prompt}]}
            said = await make.stored_prediction(sqlite, flooder.id, input=asked, output=f"answer to {prompt}")
            voted = make.feedback(said.id, f"token:{said.id}", user_id=None, rating=("up", "down")[number % 2], created_at=at)
            await repository.store(voted)
    for number in range(60):
        await rated(sqlite, others[number % 3], f"query {number}", "up" if number % 2 else "down", f"answer {number}", number)
    report = (await builder.build(SnapshotConfig(method="kto"), actor=None)).report
    people = report["people"]["kto"]
    assert (people["people"], people["cap_held"]) == (4, True)
    assert report["rows"]["kto"]["folded"] == 100
    for number in range(31):
        asked = {"messages": [{"role": "user", "content": f"ask {number}"}]}
        said = await make.stored_prediction(sqlite, flooder.id, input=asked)
        await repository.store(make.feedback(said.id, f"token:{said.id}", user_id=None, created_at=NOW - timedelta(days=1)))
    flooded = await builder.build(SnapshotConfig(method="kto"), actor=None)
    set_aside = [row for row in await Snapshots(sqlite).rows(flooded.id) if row.split == "quarantined"]
    assert [row.user_id for row in set_aside if (row.reason or "").startswith("burst")] == [flooder.id] * 31


async def test_preferences_and_their_pairs(sqlite: Database, settings: Settings, builder: SnapshotBuilder) -> None:
    user = await make.stored_user(sqlite)
    for number in range(40):
        asked = {"messages": [{"role": "user", "content": f"question {number}"}]}
        worse = await make.stored_prediction(sqlite, user.id, input=asked, output="worse")
        better = await make.stored_prediction(sqlite, user.id, input=asked, output="better")
        await Feedback(sqlite).store(make.feedback(better.id, user.id, rating=None, preferred_over=worse.id))
    snapshot = await builder.build(SnapshotConfig(), actor=None)
    assert choose_method(snapshot.report) == "dpo"
    row = lines(settings, snapshot, "train")[0]
    assert (row["kind"], row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("dpo", "better", "worse")


async def test_a_preview_stores_nothing(sqlite: Database, settings: Settings, builder: SnapshotBuilder) -> None:
    user = await make.stored_user(sqlite)
    for number in range(30):
        await corrected(sqlite, user, f"question {number}")
    report = await builder.preview(SnapshotConfig())
    assert report["methods"]["sft"]["ready"]
    assert await Snapshots(sqlite).list() == []
    assert not list(settings.data_dir.glob("snapshots/*"))
    assert (await builder.build(SnapshotConfig(), actor=None)).report == report


async def test_a_store_that_fails_leaves_no_files(sqlite: Database, settings: Settings) -> None:
    class Full(Snapshots):
        async def add(self, snapshot: SnapshotRecord, rows: Any) -> None:
            raise StorageFull("full")

    user = await make.stored_user(sqlite)
    for number in range(30):
        await corrected(sqlite, user, f"question {number}")
    builder = SnapshotBuilder(feedback=Feedback(sqlite), snapshots=Full(sqlite), settings=settings)
    with pytest.raises(StorageFull):
        await builder.build(SnapshotConfig(), actor=None)
    assert not list(settings.data_dir.glob("snapshots/*"))


async def test_a_caller_who_leaves_while_it_is_written_leaves_no_files(
    sqlite: Database, settings: Settings, builder: SnapshotBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.stored_user(sqlite)
    for number in range(30):
        await corrected(sqlite, user, f"question {number}")
    renamed, go_on, records = threading.Event(), threading.Event(), Assembly.records

    def slow(self: Assembly, snapshot_id: str) -> list[SnapshotRowRecord]:
        renamed.set()
        go_on.wait(20)
        return records(self, snapshot_id)

    monkeypatch.setattr(Assembly, "records", slow)
    building = asyncio.create_task(builder.build(SnapshotConfig(), actor=None))
    assert await asyncio.to_thread(renamed.wait, 20)
    building.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert await Snapshots(sqlite).list() == []
    assert not list(settings.data_dir.glob("snapshots/*"))


async def test_what_a_crash_left_is_tidied_away(sqlite: Database, settings: Settings, builder: SnapshotBuilder) -> None:
    old, young = settings.data_dir / "snapshots" / ".old.tmp", settings.data_dir / "snapshots" / ".young.tmp"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "spool").write_text("somebody's words")
    os.utime(old, (0, 0))
    await builder.preview(SnapshotConfig())
    assert (old.exists(), young.exists()) == (False, True)
