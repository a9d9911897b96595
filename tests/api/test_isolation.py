"""Two users: neither reads, changes, deletes or even notices what is the other's, wherever an id can stand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import Account, Service

ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"


@dataclass(frozen=True)
class Things:
    """What the first user has: one of each kind."""

    owner: Account
    prediction: str
    other_prediction: str
    conversation: str
    feedback: str
    key: str
    session: str


@pytest.fixture(scope="module")
def things(service: Service) -> Things:
    owner = service.user()
    answer = service.predict(owner, "a secret of the owner", conversation_id="new")
    second = service.predict(owner, "another")
    with service.client(owner) as client:
        body = {"prediction_id": answer["id"], "comment": "the owner's comment"}
        feedback = client.post("/feedback", json=body, headers={"Idempotency-Key": "shared-key"}).json()
        key = client.post("/auth/keys", json={"name": "mine", "scopes": ["read"]}).json()
        session = client.get("/auth/sessions").json()["sessions"][0]
    return Things(owner, answer["id"], second["id"], answer["conversation_id"], feedback["id"], key["id"], session["id"])


@pytest.fixture(scope="module", params=["user", "admin"])
def stranger(request: pytest.FixtureRequest, service: Service) -> Account:
    return service.user() if request.param == "user" else service.admin()


def requests(things: Things) -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """Every place an id can stand: ``(method, path, id, body)``; ``ID`` is replaced."""
    asked = {"prompt": "hi"}
    return {
        "read a conversation": ("GET", "/conversations/ID", things.conversation, {}),
        "delete a conversation": ("DELETE", "/conversations/ID", things.conversation, {}),
        "go on in a conversation": ("POST", "/predict", things.conversation, {**asked, "conversation_id": "ID"}),
        "stream into a conversation": (
            "POST",
            "/predict",
            things.conversation,
            {**asked, "conversation_id": "ID", "stream": True},
        ),
        "rate a prediction": ("POST", "/feedback", things.prediction, {"prediction_id": "ID", "rating": "down"}),
        "end a key": ("DELETE", "/auth/keys/ID", things.key, {}),
        "end a session": ("DELETE", "/auth/sessions/ID", things.session, {}),
    }


NAMES = list(requests(Things(Account("", "", "", ""), *[""] * 6)))


@pytest.mark.parametrize("name", NAMES)
def test_anothers_is_absent(service: Service, things: Things, stranger: Account, name: str) -> None:
    method, path, own, body = requests(things)[name]

    def ask(each: str) -> httpx.Response:
        content = json.dumps(body).replace("ID", each) if body else None
        headers = {"X-Request-ID": "same", "Content-Type": "application/json"}
        with service.client(stranger) as client:
            return client.request(method, path.replace("ID", each), content=content, headers=headers)

    foreign, absent = ask(own), ask(ABSENT)
    assert foreign.status_code == 404
    assert foreign.content == absent.content


def test_lists_and_cursors_show_ones_own(service: Service, things: Things, stranger: Account) -> None:
    with service.client(stranger) as client:
        for path, cursor in (("/feedback", things.feedback), ("/conversations", things.conversation)):
            for params in ({}, {"after": cursor}, {"after": "ffffffff-ffff-7fff-bfff-ffffffffffff"}):
                text = client.get(path, params=params).text
                assert "owner" not in text
                assert things.prediction not in text
        assert things.key not in client.get("/auth/keys").text
        assert things.session not in client.get("/auth/sessions").text


def test_an_idempotency_key_is_ones_own(service: Service, things: Things, stranger: Account) -> None:
    mine = service.predict(stranger)
    with service.client(stranger) as client:
        body = {"prediction_id": mine["id"], "comment": f"by {stranger.username}"}
        answer = client.post("/feedback", json=body, headers={"Idempotency-Key": "shared-key"})
    assert answer.status_code == 201
    assert "idempotent-replayed" not in answer.headers
    assert answer.json()["comment"] == f"by {stranger.username}"


def test_a_foreign_conversation_over_the_websocket(service: Service, things: Things, stranger: Account) -> None:
    with connect(f"ws://127.0.0.1:{service.port}/predict/ws", additional_headers=stranger.headers, proxy=None) as socket:
        socket.send(json.dumps({"prompt": "hi", "conversation_id": things.conversation}))
        frame = json.loads(socket.recv(10))
    assert frame["event"] == "problem"
    assert frame["data"]["status"] == 404


def test_protected_fields_cannot_be_assigned(service: Service) -> None:
    user = service.user()
    mine = service.predict(user)
    protected = (
        "user_id",
        "id",
        "rater",
        "review",
        "created_at",
        "superseded_at",
        "checksum",
        "role",
        "is_admin",
        "owner_id",
        "quota",
    )
    with service.client(user) as client:
        for field in protected:
            assert client.post("/feedback", json={"prediction_id": mine["id"], "rating": "up", field: "x"}).status_code == 422
            assert client.post("/predict", json={"prompt": "a", field: "x"}).status_code == 422
        assert client.get("/auth/me").json()["role"] == "user"


def test_a_deleted_user_leaves_nothing(service: Service) -> None:
    user = service.user()
    answer = service.predict(user, "to be forgotten", conversation_id="new")
    with service.client(user) as client:
        client.post("/feedback", json={"prediction_id": answer["id"], "comment": "forget-me-canary"})
        me = client.get("/auth/me").json()["id"]
    with service.client(service.admin()) as admin:
        assert admin.delete(f"/auth/users/{me}").status_code == 204
        assert "forget-me-canary" not in admin.get("/feedback", params={"all": "true", "history": "true"}).text
        body = {"feedback_token": answer["feedback_token"], "rating": "up"}
        assert admin.post("/feedback", json=body).status_code == 404
    with service.client(user) as client:
        assert client.get("/model").status_code == 401


def test_the_owner_still_has_everything(service: Service, things: Things) -> None:
    with service.client(things.owner) as client:
        assert client.get(f"/conversations/{things.conversation}").status_code == 200
        assert client.get("/feedback").json()["items"][0]["comment"] == "the owner's comment"
        body = {"prediction_id": things.prediction, "preferred_over": things.other_prediction}
        assert client.post("/feedback", json=body).status_code == 201
        assert client.delete(f"/conversations/{things.conversation}").status_code == 204
        assert client.get(f"/conversations/{things.conversation}").status_code == 404
