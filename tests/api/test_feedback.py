"""``/feedback`` to the letter of test B7: bounds in code points, text only, idempotency, tokens, one's own predictions."""

from __future__ import annotations

import base64
import itertools
import json
import os
from typing import Any

import httpx
import pytest

from tests.conftest import Account, Service

_keys = itertools.count(1)


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


@pytest.fixture(scope="module")
def prediction(service: Service, user: Account) -> dict[str, Any]:
    return service.predict(user)


def give(service: Service, account: Account | None, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=True).encode()
    with service.client(account) as client:
        return client.post("/feedback", content=content, headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a" * 5000,
        "😀" * 5000,
        "tab\tand\nline",
        "ñ̃",
        "e\u0301",
        "\U0001f468\u200d\U0001f469",
        "a\u2028b",
        "a\u0085b",
        "aaaa" * 300,
    ],
    ids=lambda text: f"{len(text)} of {text[:1]!r}",
)
def test_text_is_stored_exactly(service: Service, user: Account, prediction: dict[str, Any], text: str) -> None:
    for field in ("correction", "comment"):
        answer = give(service, user, {"prediction_id": prediction["id"], field: text})
        assert answer.status_code == 201, answer.text
        assert answer.json()[field] == text
    with service.client(user) as client:
        stored = client.get("/feedback", params={"limit": 1}).json()["items"][0]
    assert stored["comment"] == text


BLOB = base64.b64encode(os.urandom(600)).decode()
BAD_TEXTS = {
    "5001": "a" * 5001,
    "5001 emoji": "😀" * 5001,
    "empty": "",
    "blank": " \n\t ",
    "nul": "a\0b",
    "bell": "a\x07",
    "carriage return": "a\rb",
    "escape": "\x1b[31m",
    "del": "\x7f",
    "lone surrogate": "\ud800",
    "reversed mark": "\ufffe",
    "png": "\x89PNG\r\n",
    "png as text": "\x89PNG",
    "pdf": "%PDF-1.7",
    "zip": "PK\x03\x04",
    "elf": "\x7fELF",
    "gif": "GIF89a",
    "pe": "MZ\x90",
    "data url": "data:image/png;base64,iVBORw0KGgo=",
    "base64": BLOB,
    "base64 within": f"see {BLOB} there",
    "number": 7,
    "list": ["a"],
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_what_is_not_text_is_422(service: Service, user: Account, prediction: dict[str, Any], name: str) -> None:
    for field in ("correction", "comment"):
        answer = give(service, user, {"prediction_id": prediction["id"], field: BAD_TEXTS[name]})
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


BAD_BODIES: dict[str, bytes] = {
    "nothing said": b'{"prediction_id":"%s"}',
    "all null": b'{"prediction_id":"%s","rating":null}',
    "tags alone": b'{"prediction_id":"%s","tags":["a"]}',
    "no prediction": b'{"rating":"up"}',
    "rating": b'{"prediction_id":"%s","rating":"good"}',
    "rating number": b'{"prediction_id":"%s","rating":1}',
    "unknown field": b'{"prediction_id":"%s","rating":"up","user_id":"x"}',
    "mass assignment": b'{"prediction_id":"%s","rating":"up","review":"approved"}',
    "nan": b'{"prediction_id":"%s","rating":NaN}',
    "17 tags": b'{"prediction_id":"%s","rating":"up","tags":[' + b",".join([b'"a"'] * 17) + b"]}",
    "capital tag": b'{"prediction_id":"%s","rating":"up","tags":["A"]}',
    "long tag": b'{"prediction_id":"%s","rating":"up","tags":["' + b"a" * 33 + b'"]}',
    "tag line": b'{"prediction_id":"%s","rating":"up","tags":["a\\n"]}',
    "short id": b'{"prediction_id":"1","rating":"up"}',
    "itself preferred": b'{"prediction_id":"%s","preferred_over":"%s"}',
    "invalid utf-8": b'{"prediction_id":"%s","comment":"\xff"}',
    "cut": b'{"prediction_id":"%s"',
    "empty": b"",
    "array": b"[]",
    "deep": b'{"prediction_id":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "33 levels": b'{"prediction_id":' + b"[" * 33 + b"]" * 33 + b"}",
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_422(service: Service, user: Account, prediction: dict[str, Any], name: str) -> None:
    body = BAD_BODIES[name].replace(b"%s", prediction["id"].encode())
    answer = give(service, user, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_utf_16_is_422(service: Service, user: Account, prediction: dict[str, Any]) -> None:
    text = json.dumps({"prediction_id": prediction["id"], "rating": "up"})
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        assert give(service, user, text.encode(encoding)).status_code == 422


def test_other_content_types_are_415(service: Service, user: Account, prediction: dict[str, Any]) -> None:
    body = json.dumps({"prediction_id": prediction["id"], "rating": "up"}).encode()
    with service.client(user) as client:
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/evil+json"}):
            answer = client.post("/feedback", content=body, headers=headers)
            assert answer.status_code == 415
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_newer_feedback_replaces_the_older(service: Service, user: Account) -> None:
    prediction = service.predict(user)
    for rating in ("up", "down"):
        assert give(service, user, {"prediction_id": prediction["id"], "rating": rating}).status_code == 201
    with service.client(user) as client:
        current = [item for item in client.get("/feedback").json()["items"] if item["prediction_id"] == prediction["id"]]
        params = {"history": "true"}
        history = [
            item for item in client.get("/feedback", params=params).json()["items"] if item["prediction_id"] == prediction["id"]
        ]
    assert [item["rating"] for item in current] == ["down"]
    assert [item["rating"] for item in history] == ["down", "up"]


def test_the_same_key_gives_the_same_record(service: Service, user: Account, prediction: dict[str, Any]) -> None:
    key = f"key-{next(_keys)}"
    body = {"prediction_id": prediction["id"], "rating": "up", "tags": ["one"]}
    first, again = (give(service, user, body, **{"Idempotency-Key": key}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = give(service, user, {**body, "rating": "down"}, **{"Idempotency-Key": key})
    assert other.status_code == 422
    assert other.json()["type"] == "urn:aprendiz:problem:idempotency-mismatch"


@pytest.mark.parametrize("key", ["", "a b", "a" * 129, "ñ"])
def test_bad_keys_are_422(service: Service, user: Account, prediction: dict[str, Any], key: str) -> None:
    with service.client(user) as client:
        answer = client.post(
            "/feedback",
            json={"prediction_id": prediction["id"], "rating": "up"},
            headers=[(b"Idempotency-Key", key.encode())],
        )
    assert answer.status_code == 422


def test_anothers_prediction_is_absent(service: Service, user: Account, prediction: dict[str, Any]) -> None:
    stranger, absent = service.user(), "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"
    mine = service.predict(stranger)
    answers = [
        give(service, stranger, {"prediction_id": prediction["id"], "rating": "up"}),
        give(service, stranger, {"prediction_id": absent, "rating": "up"}),
        give(service, service.admin(), {"prediction_id": prediction["id"], "rating": "up"}),
        give(service, stranger, {"prediction_id": mine["id"], "preferred_over": prediction["id"]}),
        give(service, stranger, {"prediction_id": mine["id"], "preferred_over": absent}),
    ]
    bodies = {json.dumps({**answer.json(), "instance": ""}) for answer in answers}
    assert [answer.status_code for answer in answers] == [404] * 5
    assert len(bodies) == 1


def test_a_preference_between_ones_own(service: Service, user: Account, prediction: dict[str, Any]) -> None:
    better = service.predict(user, "better")
    answer = give(service, user, {"prediction_id": better["id"], "preferred_over": prediction["id"]})
    assert answer.status_code == 201
    assert answer.json()["preferred_over"] == prediction["id"]


def test_a_token_votes_without_a_login(service: Service, user: Account) -> None:
    prediction = service.predict(user)
    body = {"feedback_token": prediction["feedback_token"], "rating": "up"}
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        answer = give(service, None, body, **headers)
        assert answer.status_code == 201, answer.text
        assert answer.json()["rater"] == f"token:{prediction['id']}"
    with service.client(user) as client:
        assert all(item["prediction_id"] != prediction["id"] for item in client.get("/feedback").json()["items"])
    for token in ("", "x", prediction["feedback_token"][:-1] + "!", "A" * 48):
        assert give(service, None, {**body, "feedback_token": token}).status_code == 401
    both = {**body, "prediction_id": prediction["id"]}
    assert give(service, None, both).status_code == 422


def test_without_a_login_it_is_401(service: Service, prediction: dict[str, Any]) -> None:
    assert give(service, None, {"prediction_id": prediction["id"], "rating": "up"}).status_code == 401


def test_lists_are_paged_and_ones_own(service: Service) -> None:
    user = service.user()
    for number in range(3):
        prediction = service.predict(user, f"number {number}")
        give(service, user, {"prediction_id": prediction["id"], "comment": f"comment {number}"})
    with service.client(user) as client:
        first = client.get("/feedback", params={"limit": 2}).json()
        second = client.get("/feedback", params={"limit": 2, "after": first["next"]}).json()
        assert [item["comment"] for item in first["items"] + second["items"]] == ["comment 2", "comment 1", "comment 0"]
        assert second["next"] is None
        assert client.get("/feedback", params={"all": "true"}).status_code == 403
        for bad in ({"limit": 0}, {"limit": 501}, {"limit": "x"}, {"after": "1"}):
            assert client.get("/feedback", params=bad).status_code == 422
    with service.client(service.admin()) as client:
        everybodys = client.get("/feedback", params={"all": "true"}).json()["items"]
    assert {"comment 0", "comment 1", "comment 2"} <= {item["comment"] for item in everybodys}


def test_the_export_is_json_lines_for_trl(service: Service, user: Account) -> None:
    prediction = service.predict(user, "capital of France?")
    give(service, user, {"prediction_id": prediction["id"], "correction": "Paris, ça va 🙂", "rating": "down"})
    with service.client(service.admin()) as client:
        for format in ("sft", "dpo", "kto"):
            answer = client.get("/feedback/export", params={"format": format})
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("application/x-ndjson")
            rows = [json.loads(line) for line in answer.text.splitlines()]
            assert any("capital of France?" in json.dumps(row) for row in rows)
        assert client.get("/feedback/export", params={"format": "csv"}).status_code == 422
        assert client.get("/feedback/export").status_code == 422
    with service.client(user) as client:
        assert client.get("/feedback/export", params={"format": "sft"}).status_code == 403
