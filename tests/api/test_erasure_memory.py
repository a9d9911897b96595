"""Erasing a person takes what was remembered of them: documents, chunks, facts, vectors in the store; nobody else's."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import pytest

from tests.api.test_erasure import canaries, erase, files_with, person
from tests.conftest import Account, Serve, Service

pytest.importorskip("faiss")
TEXT = "The ferry to {mark} leaves at dawn. "


@pytest.fixture
def remembering(serve: Serve) -> Service:
    return serve(memory={"embedder": "echo/echo"})


def remember(service: Service, account: Account, mark: str) -> None:
    """A document, a kept fact, a proposed one, and a search that warms the store."""
    with service.client(account) as client:
        file = {"file": (f"{mark}.txt", TEXT.format(mark=mark) * 40)}
        made = client.post("/documents", files=file, data={"collection": mark}).json()
        deadline = time.monotonic() + 30
        while not (now := client.get(f"/documents/{made['id']}").json())["embedded"]:
            assert time.monotonic() < deadline, now
            time.sleep(0.05)
        assert client.post("/memory", json={"text": f"I live in {mark}."}).status_code == 201
        asked = {"prompt": f"I am allergic to {mark}.", "memory": True, "documents": True}
        assert client.post("/predict", json=asked).json()["context"]["proposed"]
        assert found(service, account, mark)


def found(service: Service, account: Account, query: str) -> list[dict[str, Any]]:
    with service.client(account) as client:
        hits: list[dict[str, Any]] = client.post("/documents/search", json={"query": query}).json()["hits"]
        return hits


def vectors_of(service: Service, user_id: str) -> list[bytes]:
    with sqlite3.connect(service.settings.data_dir / "aprendiz.db") as connection:
        rows = connection.execute(
            "SELECT vector FROM chunks WHERE user_id = ? UNION SELECT vector FROM facts WHERE user_id = ?", (user_id, user_id)
        ).fetchall()
    return [row[0] for row in rows if row[0] is not None]


def test_nothing_remembered_of_an_erased_person_is_left(remembering: Service) -> None:
    data = remembering.settings.data_dir
    ana, ben = person(remembering, canaries("ana")), person(remembering, canaries("ben"))
    remember(remembering, ana, "canaryanaport")
    remember(remembering, ben, "canarybenport")
    marks = vectors_of(remembering, ana.id)
    assert marks
    assert files_with(data, "canaryanaport")

    report = erase(remembering, ana)
    assert report["complete"]
    assert report["counts"]["documents"] == 1
    assert report["counts"]["chunks"] >= 1
    assert report["counts"]["facts"] == 2
    assert not files_with(data, "canaryanaport")
    held = [path.read_bytes() for path in data.rglob("*") if path.is_file()]
    assert not any(mark in content for mark in marks for content in held)
    with sqlite3.connect(data / "aprendiz.db") as connection:
        for table in ("documents", "chunks", "facts", "partitions"):
            assert connection.execute(f"SELECT count(*) FROM {table} WHERE user_id = ?", (ana.id,)).fetchone() == (0,)

    assert found(remembering, ben, "canarybenport")
    assert not [hit for hit in found(remembering, ben, "canaryanaport") if "canaryana" in hit["text"]]
