"""The review queue over HTTP: what waits, who may decide, and what a decision does to training and examples."""

from __future__ import annotations

import http.client
import json
from typing import Any

import httpx
import pytest

from app.core.ids import uuid7
from tests.conftest import Account, Service


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def correct(service: Service, user: Account, text: str, *, anonymous: bool = False, prompt: str = "hello") -> str:
    """A correction of a new answer; its id."""
    answer = service.predict(user, prompt)
    body: dict[str, Any] = {"correction": text}
    body |= {"feedback_token": answer["feedback_token"]} if anonymous else {"prediction_id": answer["id"]}
    with service.client(None if anonymous else user) as client:
        given = client.post("/feedback", json=body)
    assert given.status_code == 201, given.text
    return str(given.json()["id"])


def decide(service: Service, feedback_id: str, account: Account | None = None, **body: Any) -> httpx.Response:
    with service.client(account or service.admin()) as client:
        return client.post(f"/feedback/{feedback_id}/review", json=body)


def waiting(service: Service, **params: Any) -> dict[str, dict[str, Any]]:
    """All pages of the queue, by id."""
    found: dict[str, dict[str, Any]] = {}
    with service.client(service.admin()) as client:
        while True:
            page = client.get("/feedback/review", params=params).json()
            found |= {item["id"]: item for item in page["items"]}
            if page["next"] is None:
                return found
            params["after"] = page["next"]


def exported(service: Service) -> list[dict[str, Any]]:
    with service.client(service.admin()) as client:
        return [json.loads(line) for line in client.get("/feedback/export", params={"format": "sft"}).text.splitlines()]


def test_a_correction_waits_and_is_shown_with_its_answer(service: Service, user: Account) -> None:
    given = correct(service, user, "Write to me@example.org", prompt="how do I reach you?")
    item = waiting(service)[given]
    assert item["prompt"][-1] == {"role": "user", "content": "how do I reach you?"}
    assert item["correction"] == "Write to me@example.org"
    assert item["flags"] == ["email"]
    assert (item["review"], item["reason"], item["rater"]) == ("pending", None, user.id)


def test_pages_hold_each_waiting_feedback_once(service: Service, user: Account) -> None:
    given = {correct(service, user, f"better {number}") for number in range(5)}
    assert given <= set(waiting(service, limit=2))


def test_anonymous_corrections_train_only_once_approved(service: Service, user: Account) -> None:
    own, anonymous = correct(service, user, "mine"), correct(service, user, "a stranger's", anonymous=True)
    said = [row["feedback_id"] for row in exported(service)]
    assert own in said
    assert anonymous not in said
    assert decide(service, anonymous, decision="approve").json()["review"] == "approved"
    assert anonymous in [row["feedback_id"] for row in exported(service)]
    assert decide(service, own, decision="reject").json()["review"] == "rejected"
    assert own not in [row["feedback_id"] for row in exported(service)]
    assert not {own, anonymous} & set(waiting(service))


def test_an_edit_replaces_the_wording(service: Service, user: Account) -> None:
    given = correct(service, user, "teh answer")
    answer = decide(service, given, decision="edit", correction="The answer.")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["review"], body["edited"], body["correction"]) == ("approved", "The answer.", "teh answer")
    assert body["reviewed_by"] == service.admin().id
    row = next(row for row in exported(service) if row["feedback_id"] == given)
    assert row["completion"][0]["content"] == "The answer."
    again = decide(service, given, decision="edit", correction="The answer.")
    assert again.json() == body
    back = decide(service, given, decision="reset").json()
    assert (back["review"], back["edited"]) == ("pending", None)
    assert given in waiting(service)


def test_a_superseded_feedback_is_a_conflict(service: Service, user: Account) -> None:
    answer = service.predict(user)
    with service.client(user) as client:
        first = client.post("/feedback", json={"prediction_id": answer["id"], "correction": "one"}).json()["id"]
        second = client.post("/feedback", json={"prediction_id": answer["id"], "correction": "two"}).json()["id"]
    refused = decide(service, first, decision="approve")
    assert refused.status_code == 409, refused.text
    assert "newer" in refused.json()["detail"]
    assert decide(service, second, decision="approve").status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "decision"),
        ({"decision": "maybe"}, "decision"),
        ({"decision": "approve", "correction": "x"}, "correction"),
        ({"decision": "edit"}, "correction"),
        ({"decision": "edit", "correction": ""}, "correction"),
        ({"decision": "edit", "correction": "a" * 5001}, "correction"),
        ({"decision": "edit", "correction": "a\x00b"}, "correction"),
        ({"decision": "edit", "correction": 5}, "correction"),
        ({"decision": "approve", "review": "approved"}, "review"),
    ],
    ids=str,
)
def test_bad_decisions_are_refused(service: Service, user: Account, body: dict[str, Any], field: str) -> None:
    given = correct(service, user, "fine")
    answer = decide(service, given, **body)
    assert answer.status_code in (400, 422), answer.text
    assert field in answer.text
    assert waiting(service)[given]["review"] == "pending"


def test_a_rating_cannot_be_edited_but_can_be_rejected(service: Service, user: Account) -> None:
    answer = service.predict(user)
    with service.client(user) as client:
        given = client.post("/feedback", json={"prediction_id": answer["id"], "rating": "up"}).json()["id"]
    assert decide(service, given, decision="edit", correction="x").status_code == 409
    assert decide(service, given, decision="reject").json()["review"] == "rejected"


def test_only_admins_review(service: Service, user: Account) -> None:
    given = correct(service, user, "fine")
    with service.client(user) as client:
        assert client.get("/feedback/review").status_code == 403
    assert decide(service, given, user, decision="approve").status_code == 403
    assert decide(service, uuid7(), decision="approve").status_code == 404
    assert decide(service, "x", decision="approve").status_code == 404


TRL = b'{"prompt": "What does ls do?", "completion": "It lists files."}\n{"prompt": 5, "completion": "x"}\n'


def upload(service: Service, content: bytes, account: Account | None = None, **more: Any) -> httpx.Response:
    headers = {"Content-Type": more.pop("kind", "application/x-ndjson")}
    with service.client(account or service.admin()) as client:
        return client.post("/feedback/import", content=content, headers=headers, params={"format": "trl", **more})


def test_a_file_is_imported_and_waits_for_its_review(service: Service) -> None:
    answer = upload(service, TRL)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["read"], body["stored"], body["examples"]) == (
        2,
        1,
        [{"row": 2, "reason": "not a row in one of TRL's forms"}],
    )
    item = next(item for item in waiting(service).values() if item["rater"].startswith("import:trl:"))
    assert (item["correction"], item["model"]) == ("It lists files.", "unknown")
    assert "It lists files." not in [row["completion"][0]["content"] for row in exported(service)]
    assert decide(service, item["id"], decision="approve").status_code == 200
    assert "It lists files." in [row["completion"][0]["content"] for row in exported(service)]
    assert upload(service, TRL).json()["already"] == 1


def test_imports_are_bounded_and_for_admins(service: Service, user: Account) -> None:
    assert upload(service, TRL, user).status_code == 403
    assert upload(service, TRL, kind="text/plain").status_code == 415
    assert upload(service, TRL, format="csv").status_code in (400, 422)
    assert upload(service, b"no file").status_code in (400, 422)
    line = json.dumps({"prompt": "Why?", "completion": "x", "padding": "a" * 100_000}).encode() + b"\n"
    assert upload(service, line * 60).json()["stored"] == 1  # more than other bodies may have
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    connection.putrequest("POST", "/feedback/import?format=trl")
    for name, value in {**service.admin().headers, "Content-Type": "text/csv", "Content-Length": str(1 << 27)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    assert not list(service.settings.data_dir.glob("**/*import*"))
