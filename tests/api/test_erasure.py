"""Erasing a person, from outside: nothing of what was theirs is left in any byte of the data directory, nor comes back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.ids import uuid7
from app.core.records import RunRecord, SnapshotRecord, SnapshotRowRecord
from app.db.database import open_database
from app.db.runs import Runs
from app.db.snapshots import Snapshots
from tests.conftest import PASSWORD, Account, Serve, Service

NOW = datetime(2026, 11, 23, tzinfo=UTC)
QUESTION = "What is the guest wifi password in Lisbon?"


@pytest.fixture
def busy(serve: Serve) -> Service:
    return serve(model={"model": "recites", "temperature": 0})


def canaries(name: str) -> dict[str, str]:
    return {
        place: f"canary{name}{place}q7z"
        for place in ("name", "prompt", "correction", "comment", "title", "history", "tag", "key")
    }


def person(service: Service, marks: dict[str, str]) -> Account:
    with service.client(service.admin()) as client:
        invite = client.post("/auth/invites", json={"role": "user"}).json()["token"]
    with service.client() as client:
        made = client.post("/auth/register", json={"username": marks["name"], "password": PASSWORD, "invite": invite})
        token = client.post("/auth/token", json={"username": marks["name"], "password": PASSWORD}).json()["access_token"]
    return Account(made.json()["id"], marks["name"], token, "user")


def live(service: Service, account: Account, marks: dict[str, str]) -> dict[str, Any]:
    """Does all that a person can do, with a mark in each."""
    first = service.predict(account, f"{marks['title']} {QUESTION}", conversation_id="new")
    service.predict(account, f"{marks['history']} and again", conversation_id=first["conversation_id"])
    service.predict(account, f"{marks['prompt']} " * 50)
    with service.client(account) as client:
        given = client.post(
            "/feedback",
            json={
                "prediction_id": first["id"], "rating": "down", "correction": f"It is {marks['correction']}.",
                "comment": marks["comment"] * 20, "tags": [marks["tag"]],
            },
        )  # fmt: skip
        assert given.status_code == 201, given.text
        client.post("/feedback", json={"feedback_token": first["feedback_token"], "correction": f"No, {marks['correction']}!"})
        client.post("/auth/keys", json={"name": marks["key"], "scopes": ["predict"]})
        client.post("/v1/responses", json={"model": "default", "input": marks["prompt"], "store": True})
    return {"conversation": first["conversation_id"], "prediction": first["id"], "feedback": given.json()["id"]}


def trained(service: Service, rows: list[tuple[str, str | None, str]], text: str) -> tuple[str, str]:
    """A snapshot and a run as if made of ``(user, feedback, split)``, with their files; their ids."""
    snapshot = SnapshotRecord(uuid7(), NOW, None, "d" * 64, "feedback", {}, {"seen": text})
    run = RunRecord(
        uuid7(), NOW, None, "succeeded", "done", "sft", "never", {}, snapshot_id=snapshot.id, version=f"v{uuid7()[:8]}"
    )
    held = [
        SnapshotRowRecord(snapshot.id, number, split, "sft", "g", 1.0, feedback, uuid7(), user, user)  # type: ignore[arg-type]
        for number, (user, feedback, split) in enumerate(rows)
    ]

    async def add() -> None:
        database = open_database(service.settings)
        await database.open()
        await Snapshots(database).add(snapshot, held)
        await Runs(database).add(run)
        await database.aclose()

    asyncio.run(add())
    for kind, name in (("snapshots", snapshot.id), ("runs", run.id), ("adapters", run.id), ("adapters", f".{run.id}.part")):
        folder = service.settings.data_dir / kind / name
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(text)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "1.bin").write_bytes(text.encode() * 100)
    return snapshot.id, run.id


def files_with(folder: Path, *marks: str) -> list[tuple[str, str]]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes().lower()
            found += [(str(path.relative_to(folder)), mark) for mark in marks if mark.lower().encode() in data]
    return found


def erase(service: Service, account: Account, **more: Any) -> dict[str, Any]:
    with service.client(service.admin()) as client:
        answer = client.post("/training/erasures", json={"user_id": account.id, **more})
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def test_nothing_of_an_erased_person_is_left_and_nothing_of_others_is_lost(busy: Service) -> None:
    marks, others = canaries("ana"), canaries("ben")
    ana, ben = person(busy, marks), person(busy, others)
    data = busy.settings.data_dir
    done, kept = live(busy, ana, marks), live(busy, ben, others)
    with busy.client(busy.admin()) as client:
        assert client.post(f"/feedback/{done['feedback']}/review", json={"decision": "approve"}).status_code == 200
    lent = busy.predict(ben, f"{marks['title'][:6]} {QUESTION}", conversation_id="new")  # similar: ben hears ana's words
    assert marks["correction"] in lent["text"]
    later = busy.predict(ben, "and again?", conversation_id=lent["conversation_id"])
    assert marks["correction"] in later["text"]
    snapshot, run = trained(
        busy, [(ana.id, done["feedback"], "train"), (ben.id, kept["feedback"], "train")], marks["correction"]
    )
    other_snapshot, other_run = trained(busy, [(ben.id, kept["feedback"], "train")], others["correction"])
    assert {mark for _, mark in files_with(data, *marks.values())} == set(marks.values())

    report = erase(busy, ana)
    assert report["complete"]
    assert (report["snapshots"], report["runs"]) == ([snapshot], [run])
    assert report["counts"]["predictions"] == 4
    assert report["counts"]["conversations"] == 1
    assert report["counts"]["feedback"] >= 1
    assert report["counts"]["answers_of_others"] == 1
    assert report["retrain"] == {"method": "auto", "promote": "if_passed"}

    assert [found for found in files_with(data, *marks.values()) if "later" not in found] == _repeated(busy, marks, later["id"])
    left = {mark for _, mark in files_with(data, *others.values())}
    assert left == set(others.values())
    for kind, name in (("snapshots", other_snapshot), ("runs", other_run), ("adapters", other_run)):
        assert (data / kind / name / "train.jsonl").exists()
    for kind, name in (("snapshots", snapshot), ("runs", run), ("adapters", run), ("adapters", f".{run}.part")):
        assert not (data / kind / name).exists()
    assert not list((data / "erasures").iterdir())
    _nothing_comes_back(busy, ana, ben, marks, run)


def _repeated(service: Service, marks: dict[str, str], prediction_id: str) -> list[tuple[str, str]]:
    """This model recites its whole prompt, so what a later answer said again of an emptied one is the other's own output."""
    with sqlite3.connect(service.settings.data_dir / "aprendiz.db") as connection:
        rows = connection.execute("SELECT id, input, output FROM predictions").fetchall()
    holding = [row[0] for row in rows if any(mark in row[1] + row[2] for mark in marks.values())]
    assert set(holding) <= {prediction_id}
    return [("aprendiz.db", marks[place]) for place in marks if any(marks[place] in row[1] + row[2] for row in rows)]


def _nothing_comes_back(service: Service, ana: Account, ben: Account, marks: dict[str, str], run: str) -> None:
    with service.client(ana) as client:
        assert client.get("/auth/me").status_code == 401
    answer = service.predict(ben, f"{marks['title'][:6]} {QUESTION}")
    assert answer["examples"] == 0
    assert not answer["cached"]
    with service.client(service.admin()) as client:
        seen = "".join(
            client.get(path).text
            for path in ("/feedback?all=true&history=true", "/feedback/export?format=sft", "/auth/users", "/feedback/review",
                         "/training/snapshots", "/training/runs", f"/training/lineage/users/{ana.id}")
        )  # fmt: skip
        assert not [mark for mark in marks.values() if mark in seen]
        assert client.get(f"/training/lineage/users/{ana.id}").json()["snapshots"] == []
        shown = client.get(f"/training/runs/{run}").json()
        assert shown["state"] == "succeeded"
        assert client.delete(f"/auth/users/{ana.id}").status_code == 404


def test_deleting_an_account_does_the_same(busy: Service) -> None:
    marks = canaries("cleo")
    cleo = person(busy, marks)
    live(busy, cleo, marks)
    snapshot, run = trained(busy, [(cleo.id, None, "heldout")], marks["correction"])
    with busy.client(busy.admin()) as client:
        assert client.delete(f"/auth/users/{cleo.id}").status_code == 204
        line = next(each for each in _audit(busy) if each["action"] == "user.delete")
    assert line["target"] == cleo.id
    assert not files_with(busy.settings.data_dir, *marks.values())
    for kind, name in (("snapshots", snapshot), ("runs", run), ("adapters", run)):
        assert not (busy.settings.data_dir / kind / name).exists()


def _audit(service: Service) -> Iterator[dict[str, Any]]:
    with sqlite3.connect(service.settings.data_dir / "aprendiz.db") as connection:
        connection.row_factory = sqlite3.Row
        yield from (dict(row) for row in connection.execute("SELECT * FROM audit"))


def test_backups_are_named_and_deleted_only_when_asked_for(busy: Service) -> None:
    from app.db.backup import backup

    marks = canaries("dora")
    dora = person(busy, marks)
    live(busy, dora, marks)
    kept = backup(busy.settings)
    report = erase(busy, dora)
    assert report["backups"] == [kept.path.name]
    assert files_with(busy.settings.data_dir, marks["correction"]) == [(f"backups/{kept.path.name}", marks["correction"])]
    eve = person(busy, canaries("eve"))
    report = erase(busy, eve, delete_backups=True)
    assert (report["backups"], report["backups_deleted"]) == ([], 1)
    assert not files_with(busy.settings.data_dir, *marks.values(), *canaries("eve").values())


def test_the_last_admin_an_absent_person_and_strangers_are_refused(busy: Service) -> None:
    admin, user = busy.admin(), busy.user()

    def ask(account: Account, body: dict[str, Any]) -> httpx.Response:
        with busy.client(account) as client:
            return client.post("/training/erasures", json=body)

    assert ask(admin, {"user_id": admin.id}).status_code == 409
    for absent in (uuid7(), "x", "../../etc/passwd", "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e7/"):
        assert ask(admin, {"user_id": absent}).status_code == 404
    assert ask(admin, {"user_id": user.id, "more": 1}).status_code == 422
    assert ask(user, {"user_id": user.id}).status_code == 403
    assert not (busy.settings.data_dir / "erasures").exists()
    assert busy.predict(admin)["id"]


def test_lineage_leads_both_ways_and_belongs_to_admins(busy: Service) -> None:
    marks = canaries("fay")
    fay, gus = person(busy, marks), busy.user()
    done = live(busy, fay, marks)
    snapshot, run = trained(busy, [(fay.id, done["feedback"], "train"), (gus.id, None, "heldout")], "text")
    with busy.client(busy.admin()) as admin, busy.client(fay) as her, busy.client(gus) as him:
        version = admin.get(f"/training/lineage/predictions/{done['prediction']}").json()["version"]
        assert version["model"] == "recites"
        assert version["serves"] == ["default"]
        assert (version["run"], version["snapshot"]) == (None, None)
        of_run = admin.get(f"/training/lineage/users/{fay.id}").json()["runs"][0]["version"]
        back = admin.get(f"/training/lineage/versions/{of_run}").json()
        assert back["run"]["id"] == run
        assert back["snapshot"]["id"] == snapshot
        assert [(row["user_id"], row["feedback_id"], row["split"]) for row in back["snapshot"]["rows"]] == [
            (fay.id, done["feedback"], "train"),
            (gus.id, None, "heldout"),
        ]
        mine = her.get("/auth/me/lineage").json()
        assert mine == admin.get(f"/training/lineage/users/{fay.id}").json()
        assert mine["counts"]["predictions"] == 4
        assert [(each["id"], each["rows"]) for each in mine["snapshots"]] == [(snapshot, {"train": 1})]
        assert him.get("/auth/me/lineage").json()["counts"]["predictions"] == 0
        assert json.dumps(him.get("/auth/me/lineage").json()).count(fay.id) == 0
        for path in (f"users/{fay.id}", f"users/{gus.id}", f"predictions/{done['prediction']}", f"versions/{of_run}"):
            assert him.get(f"/training/lineage/{path}").status_code == 403
        assert admin.get("/training/lineage/versions/none").status_code == 404
        assert admin.get(f"/training/lineage/predictions/{uuid7()}").status_code == 404
