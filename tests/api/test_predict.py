"""``POST /predict`` over real sockets: answers, streams, and everything that has to be refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.events import read_events
from tests.conftest import Account, Service


@pytest.fixture(scope="module")
def user(service: Service) -> Account:
    return service.user()


def test_a_prompt_gets_a_whole_answer(service: Service, user: Account) -> None:
    with service.client(user) as client:
        answer = client.post("/predict", json={"prompt": "good morning"})
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert set(body) == {
        "id", "model", "version", "text", "finish_reason", "usage", "cached", "feedback_token", "conversation_id",
        "fallback", "examples",
    }  # fmt: skip
    assert body["fallback"] is None
    assert body["text"] == "good morning"
    assert body["model"] == "echo/echo"
    assert body["usage"]["completion_tokens"] > 0
    assert body["conversation_id"] is None


def test_messages_and_sampling_are_taken(service: Service, user: Account) -> None:
    body = {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one\r\ntwo"}],
        "model": "default",
        "max_tokens": 1,
        "temperature": 0,
        "top_p": 1,
        "stop": ["x"],
        "seed": 2**63 - 1,
        "response_format": {"type": "text"},
    }
    with service.client(user) as client:
        answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["finish_reason"] == "length"


def test_the_prediction_is_stored_before_the_answer(service: Service, user: Account) -> None:
    answer = service.predict(user)
    with service.client(user) as client:
        rated = client.post("/feedback", json={"prediction_id": answer["id"], "rating": "up"})
    assert rated.status_code == 201


def test_a_stream_is_deltas_and_then_done(service: Service, user: Account) -> None:
    with service.client(user) as client:
        response = client.post("/predict", json={"prompt": "one two three", "stream": True})
    events = read_events(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert [name for name, _ in events[:-1]] == ["delta"] * (len(events) - 1)
    assert len(events) > 2
    name, done = events[-1]
    assert name == "done"
    assert "".join(data["text"] for _, data in events[:-1]) == done["text"] == "one two three"
    with service.client(user) as client:
        assert client.post("/feedback", json={"prediction_id": done["id"], "rating": "down"}).status_code == 201


def test_a_conversation_remembers(service: Service, user: Account) -> None:
    first = service.predict(user, "my name is Ada", conversation_id="new")
    second = service.predict(user, "what is my name", conversation_id=first["conversation_id"])
    assert second["conversation_id"] == first["conversation_id"]
    with service.client(user) as client:
        thread = client.get(f"/conversations/{first['conversation_id']}").json()
    assert [turn["prompt"] for turn in thread["turns"]] == ["my name is Ada", "what is my name"]
    assert thread["title"] == "my name is Ada"


def test_a_refused_call_leaves_no_conversation(service: Service) -> None:
    user = service.user()
    with service.client(user) as client:
        refused = client.post("/predict", json={"prompt": "a", "conversation_id": "new", "model": "echo/none"})
        assert refused.status_code == 404
        assert client.get("/conversations").json()["items"] == []
        service.predict(user, conversation_id="new")
        assert len(client.get("/conversations").json()["items"]) == 1


PROMPT = b'{"prompt":"a"%s}'
BAD_BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not json", b"prompt=a"),
    ("array", b"[]"),
    ("string", b'"a"'),
    ("cut", b'{"prompt":"a"'),
    ("trailing", b'{"prompt":"a"}x'),
    ("nothing asked", b"{}"),
    ("both", b'{"prompt":"a","messages":[{"role":"user","content":"a"}]}'),
    ("blank", b'{"prompt":" \\n "}'),
    ("null prompt", b'{"prompt":null}'),
    ("number prompt", b'{"prompt":1}'),
    ("too long", b'{"prompt":"' + b"a" * 200_001 + b'"}'),
    ("nul", b'{"prompt":"a\\u0000"}'),
    ("escape", b'{"prompt":"a\\u001b"}'),
    ("del", b'{"prompt":"a\\u007f"}'),
    ("noncharacter", b'{"prompt":"a\\ufffe"}'),
    ("lone surrogate", b'{"prompt":"\\ud800"}'),
    ("reversed surrogates", b'{"prompt":"\\udc00\\ud800"}'),
    ("invalid utf-8", b'{"prompt":"\xff"}'),
    ("overlong utf-8", b'{"prompt":"\xc0\xaf"}'),
    ("utf-8 surrogate", b'{"prompt":"\xed\xa0\x80"}'),
    ("utf-16", '{"prompt":"a"}'.encode("utf-16")),
    ("utf-16 without mark", '{"prompt":"a"}'.encode("utf-16-le")),
    ("byte order mark", b'\xef\xbb\xbf{"prompt":"a"}'),
    ("unknown field", PROMPT % b',"n":2'),
    ("memory that is no yes or no", b'{"prompt":"a","memory":"yes"}'),
    ("no collections", b'{"prompt":"a","documents":[]}'),
    ("too many collections", b'{"prompt":"a","documents":[' + b",".join(b'"c%d"' % n for n in range(17)) + b"]}"),
    ("a path for a collection", b'{"prompt":"a","documents":"../b"}'),
    ("a name of capitals", b'{"prompt":"a","documents":["ok","NotOk"]}'),
    ("a number for a collection", b'{"prompt":"a","documents":1}'),
    ("deep", b'{"prompt":' + b"[" * 100_000),
    (
        "deep schema",
        PROMPT % (b',"response_format":{"type":"json_schema","json_schema":{"schema":' + b'{"a":' * 40 + b"1" + b"}" * 43),
    ),
    (
        "big schema",
        PROMPT % (b',"response_format":{"type":"json_schema","json_schema":{"schema":{"a":"' + b"x" * 40_000 + b'"}}}'),
    ),
    ("schema of another type", PROMPT % b',"response_format":{"type":"json_object","json_schema":{"schema":{}}}'),
    ("schema missing", PROMPT % b',"response_format":{"type":"json_schema"}'),
    ("unknown format", PROMPT % b',"response_format":{"type":"yaml"}'),
    ("no messages", b'{"messages":[]}'),
    ("too many messages", b'{"messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 257) + b"]}"),
    ("unknown role", b'{"messages":[{"role":"root","content":"a"}]}'),
    ("content null", b'{"messages":[{"role":"user","content":null}]}'),
    ("message field", b'{"messages":[{"role":"user","content":"a","name":"b"}]}'),
    ("assistant last", b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'),
    ("long together", b'{"messages":[' + b",".join([b'{"role":"user","content":"' + b"a" * 150_000 + b'"}'] * 2) + b"]}"),
    ("five stops", PROMPT % b',"stop":["a","b","c","d","e"]'),
    ("long stop", PROMPT % (b',"stop":["' + b"a" * 65 + b'"]')),
    ("empty stop", PROMPT % b',"stop":[""]'),
    ("stop with nul", PROMPT % b',"stop":["\\u0000"]'),
    ("conversation id", PROMPT % b',"conversation_id":"1"'),
    ("stream as text", PROMPT % b',"stream":"yes"'),
]
NUMBERS = ["-1", "null", '"1"', "NaN", "Infinity", "-Infinity", "1e308", "1e999", "9223372036854775808", "true", "[]", "{}"]
BAD_NUMBERS = [(name, value) for name in ("max_tokens", "temperature", "top_p", "seed") for value in NUMBERS]
BAD_NUMBERS += [("max_tokens", "0"), ("max_tokens", "131073"), ("max_tokens", "1.5"), ("temperature", "2.01"), ("top_p", "0")]
BAD_NUMBERS += [("top_p", "1.01"), ("seed", "-0.5")]
BAD_MODELS = ["", "../x", "a/../../b", "~root", "a\u0000b", "a b", "a\\b", "x" * 257, "..", "a\nb"]


@pytest.mark.parametrize(("name", "body"), BAD_BODIES, ids=[name for name, _ in BAD_BODIES])
def test_bad_bodies_are_422(service: Service, user: Account, name: str, body: bytes) -> None:
    assert_refused(service, user, body, 422)


@pytest.mark.parametrize(("name", "value"), BAD_NUMBERS)
def test_bad_numbers_are_422(service: Service, user: Account, name: str, value: str) -> None:
    problem = assert_refused(service, user, PROMPT % f',"{name}":{value}'.encode(), 422)
    assert problem["field"] in (name, "body")


@pytest.mark.parametrize("model", BAD_MODELS)
def test_bad_model_names_are_422(service: Service, user: Account, model: str) -> None:
    assert_refused(service, user, json.dumps({"prompt": "a", "model": model}).encode(), 422)


def test_an_unknown_model_is_404_before_any_byte(service: Service, user: Account) -> None:
    for stream in (False, True):
        body = json.dumps({"prompt": "a", "model": "no-such-model", "stream": stream}).encode()
        problem = assert_refused(service, user, body, 404)
        assert problem["type"] == "urn:aprendiz:problem:unknown-model"


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/evil+json", "multipart/form-data", "application/json; charset=utf-16"]
)
def test_other_content_types_are_415(service: Service, user: Account, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    with service.client(user) as client:
        answer = client.post("/predict", content=b'{"prompt":"a"}', headers=headers)
    assert answer.status_code == 415
    assert answer.json()["type"] == "urn:aprendiz:problem:unsupported-media-type"


def test_a_body_over_the_cap_is_413(service: Service, user: Account) -> None:
    assert_refused(service, user, b'{"prompt":"' + b"a" * 4_200_000 + b'"}', 413)


def test_what_was_sent_never_comes_back(service: Service, user: Account) -> None:
    canary = "canary-93c1"
    for body in (
        {"prompt": canary, "temperature": canary},
        {"messages": [{"role": canary, "content": canary}]},
        {"prompt": "a", "response_format": {"type": canary}},
    ):
        with service.client(user) as client:
            answer = client.post("/predict", json=body)
        assert answer.status_code == 422
        assert canary not in answer.text


def assert_refused(service: Service, account: Account, body: bytes, status: int) -> dict[str, Any]:
    with service.client(account) as client:
        answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["instance"].endswith(answer.headers["x-request-id"])
    return problem
