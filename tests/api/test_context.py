"""What was found goes into the prompt, and the answer says so, at every door; stored are ids, and private answers teach nobody.

The model here (``echo/recites``) says back all that it is given.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.api.events import read_events
from tests.api.test_documents import stored
from tests.conftest import Account, Service, make_settings, running

QUESTION = "When does the keeper trim the violet lamp?"
SAID = [{"role": "user", "content": QUESTION}]
HEADERS = {"X-Aprendiz-Memory": "true", "X-Aprendiz-Documents": "sea"}
DOORS: list[tuple[str, dict[str, Any]]] = [
    ("/predict", {"messages": SAID}),
    ("/v1/chat/completions", {"model": "default", "messages": SAID}),
    ("/v1/responses", {"model": "default", "input": QUESTION}),
    ("/v1/messages", {"model": "default", "messages": SAID, "max_tokens": 2000}),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(
        tmp_path_factory.mktemp("context"),
        memory={"embedder": "echo/echo", "history_tokens": 400},
        model={"model": "recites", "system_prompt": "Be brief.", "temperature": 0},
    )
    with running(settings) as found:
        yield found


@pytest.fixture(scope="module")
def ana(service: Service) -> Account:
    """Has a document and a fact."""
    account = service.user()
    with service.client(account) as client:
        stored(client, collection="sea")
        assert client.post("/memory", json={"text": "My violet lamp is called Petrel."}).status_code == 201
    return account


def said(answer: httpx.Response) -> dict[str, Any]:
    """Our part of an answer of any door."""
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    found: dict[str, Any] = body.get("aprendiz", body)
    return found


def stored_input(service: Service, prediction_id: str) -> dict[str, Any]:
    with sqlite3.connect(service.settings.data_dir / "aprendiz.db") as connection:
        row = connection.execute("SELECT input FROM predictions WHERE id = ?", (prediction_id,)).fetchone()
    found: dict[str, Any] = json.loads(row[0])
    return found


def test_predict_shows_passages_and_facts_and_says_so(service: Service, ana: Account) -> None:
    answer = service.predict(ana, QUESTION, memory=True, documents="sea")
    assert "- My violet lamp is called Petrel." in answer["text"] and "keeper trims the violet lamp at dusk" in answer["text"]
    first = answer["citations"][0]
    assert (first["index"], first["name"], first["collection"], first["cited"]) == (1, "harbour.md", "sea", True)
    assert "violet lamp at dusk" in first["text"] and first["place"]["section"] == "Lamps" and 0 <= first["score"] <= 1
    context = answer["context"]
    assert [fact["text"] for fact in context["facts"]] == ["My violet lamp is called Petrel."]
    assert (context["turns"], context["summary"], context["proposed"]) == (0, False, [])
    kept = stored_input(service, answer["id"])
    assert kept["context"]["passages"][0] == first["chunk_id"] and kept["context"]["facts"] == [context["facts"][0]["id"]]
    assert kept["context"]["documents"] == [first["document_id"]]
    assert [message["content"] for message in kept["messages"]] == ["Be brief.", QUESTION]
    assert "violet lamp at" not in json.dumps(kept) and "Petrel" not in json.dumps(kept)


def test_a_plain_answer_is_as_it_was(service: Service, ana: Account) -> None:
    answer = service.predict(ana, QUESTION)
    assert not {"citations", "context"} & set(answer)
    with service.client(ana) as client:
        plain = client.post("/v1/chat/completions", json=DOORS[1][1])
    assert "x-aprendiz-context" not in plain.headers and not {"citations", "context"} & set(said(plain))
    assert service.predict(ana, QUESTION, documents=False, memory=False)["text"] == answer["text"]


def test_nothing_found_is_an_empty_list(service: Service) -> None:
    answer = service.predict(service.user(), QUESTION, documents=True)
    assert answer["citations"] == []
    assert service.predict(service.user(), QUESTION, memory=True).keys() & {"citations", "context"} == {"context"}


def test_another_persons_collection_of_the_same_name_holds_nothing(service: Service, ana: Account) -> None:
    assert service.predict(ana, QUESTION, documents="sea")["citations"]
    ben = service.user()
    for documents in ("sea", ["sea", "absent"], True):
        answer = service.predict(ben, QUESTION, documents=documents, memory=True)
        assert (answer["citations"], answer["context"]["facts"]) == ([], [])
        assert "dusk" not in answer["text"] and "Petrel" not in answer["text"]


def test_every_door_takes_the_headers_and_tells(service: Service, ana: Account) -> None:
    with service.client(ana) as client:
        for path, body in DOORS:
            answer = client.post(path, json=body, headers=HEADERS)
            found = said(answer)
            assert found["citations"][0]["name"] == "harbour.md", path
            assert [fact["text"] for fact in found["context"]["facts"]] == ["My violet lamp is called Petrel."], path
            assert answer.headers["x-aprendiz-context"] == f"passages={len(found['citations'])}; facts=1; turns=0; left-out=0"
            off = client.post(path, json=body, headers={"X-Aprendiz-Memory": "False", "X-Aprendiz-Documents": "false"})
            assert "citations" not in said(off), path


def test_streams_tell_at_their_end(service: Service, ana: Account) -> None:
    ends = {
        "/predict": lambda events: events[-1][1],
        "/v1/messages": lambda events: next(data for name, data in events if name == "message_delta")["aprendiz"],
        "/v1/responses": lambda events: events[-1][1]["response"]["aprendiz"],
    }
    with service.client(ana) as client:
        for path, body in DOORS:
            answer = client.post(path, json={**body, "stream": True}, headers=HEADERS)
            if path == "/v1/chat/completions":
                chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
                found = next(chunk["aprendiz"] for chunk in chunks if "aprendiz" in chunk)
            else:
                found = ends[path](read_events(answer.text))
            assert found["citations"][0]["cited"], path
            assert found["context"]["facts"], path


def test_the_socket_takes_both(service: Service, ana: Account) -> None:
    address = service.url.replace("http", "ws") + "/predict/ws"
    body = {"prompt": QUESTION, "memory": True, "documents": True}
    with connect(address, additional_headers=ana.headers) as socket:
        socket.send(json.dumps(body))
        done = next(frame for frame in map(json.loads, socket) if frame["event"] != "delta")
    assert done["event"] == "done" and done["data"]["citations"] and done["data"]["context"]["facts"]
    with connect(address, additional_headers=ana.headers | HEADERS) as socket:
        socket.send(json.dumps({"prompt": QUESTION}))
        done = next(frame for frame in map(json.loads, socket) if frame["event"] != "delta")
    assert done["data"]["citations"] and done["data"]["context"]["facts"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Aprendiz-Memory": "yes"},
        {"X-Aprendiz-Memory": ""},
        {"X-Aprendiz-Documents": ""},
        {"X-Aprendiz-Documents": "a,,b"},
        {"X-Aprendiz-Documents": "../etc"},
        {"X-Aprendiz-Documents": ",".join(f"c{number}" for number in range(17))},
        {"X-Aprendiz-Documents": "a" * 65},
        {"X-Aprendiz-Documents": "Sea"},
    ],
)
def test_bad_headers_are_refused_with_what_is_allowed(service: Service, ana: Account, headers: dict[str, str]) -> None:
    with service.client(ana) as client:
        for path, body in DOORS[1:]:
            answer = client.post(path, json=body, headers=headers)
            assert answer.status_code == 400, (path, answer.text)
            assert "must be `true`" in answer.text and "etc" not in answer.text


def test_a_prompt_to_go_on_from_takes_none(service: Service, ana: Account) -> None:
    with service.client(ana) as client:
        answer = client.post("/v1/completions", json={"model": "default", "prompt": "Once"}, headers=HEADERS)
        assert answer.status_code == 400
        off = {"X-Aprendiz-Memory": "false", "X-Aprendiz-Documents": "false"}
        assert client.post("/v1/completions", json={"model": "default", "prompt": "Once"}, headers=off).status_code == 200


def test_stored_responses_are_shown_without_what_was_found(service: Service, ana: Account) -> None:
    with service.client(ana) as client:
        made = client.post("/v1/responses", json=DOORS[2][1], headers=HEADERS).json()
        again = client.get(f"/v1/responses/{made['id']}")
        items = client.get(f"/v1/responses/{made['id']}/input_items")
        on = client.post("/v1/responses", json={**DOORS[2][1], "previous_response_id": made["id"]})
    assert "citations" not in again.json()["aprendiz"]
    assert "Passages from" not in items.text
    assert on.json()["output"][0]["content"][0]["text"].count("user: Passages") <= 1, "only in the answer that recited them"


def test_what_goes_on_from_a_private_response_is_private_too(service: Service, ana: Account) -> None:
    with service.client(ana) as client:
        first = client.post("/v1/responses", json={"model": "default", "input": QUESTION}, headers=HEADERS).json()
        for asked in ("And then?", "And after that?"):
            body = {"model": "default", "input": asked, "previous_response_id": first["id"]}
            first = client.post("/v1/responses", json=body).json()
            number = first["id"].removeprefix("resp_")
            assert stored_input(service, number)["context"]["private"] is True
        plain = client.post("/v1/responses", json={"model": "default", "input": "Hello."}).json()
        assert "context" not in stored_input(service, plain["id"].removeprefix("resp_"))


def test_turns_are_recalled_counted_and_never_with_what_was_found(service: Service) -> None:
    user = service.user()
    with service.client(user) as client:
        stored(client, collection="sea")
    first = service.predict(user, "Hello there.", conversation_id="new")
    thread = first["conversation_id"]
    assert first["context"]["turns"] == 0
    service.predict(user, QUESTION, conversation_id=thread, documents=True)
    third = service.predict(user, "Thanks for that answer, harbour friend.", conversation_id=thread)
    assert third["context"]["turns"] + third["context"]["left_out"].get("turns", 0) == 2
    asked = [message["content"] for message in stored_input(service, third["id"])["messages"] if message["role"] == "user"]
    assert asked[-1] == "Thanks for that answer, harbour friend." and not any("===" in text for text in asked)


def test_left_out_turns_are_counted(service: Service) -> None:
    user = service.user()
    thread = service.predict(user, "word " * 150, conversation_id="new")["conversation_id"]
    answer = service.predict(user, "And now?", conversation_id=thread)
    assert answer["context"]["turns"] + answer["context"]["left_out"].get("turns", 0) == 1
    for _ in range(3):
        answer = service.predict(user, "word " * 30, conversation_id=thread)
    assert answer["context"]["left_out"].get("turns", 0) or answer["context"]["summary"]


def test_a_cached_answer_is_found_only_with_the_same_context(service: Service) -> None:
    user = service.user()
    with service.client(user) as client:
        stored(client, collection="sea")
    first = service.predict(user, QUESTION, documents=True)
    again = service.predict(user, QUESTION, documents=True)
    assert again["cached"] and again["citations"] == first["citations"]
    assert stored_input(service, again["id"])["context"] == stored_input(service, first["id"])["context"]
    with service.client(user) as client:
        more = "# Lamps\n\nThe keeper trims the violet lamp at midnight now.\n"
        other = stored(client, more, name="later.md", collection="sea")
    newer = service.predict(user, QUESTION, documents=True)
    assert not newer["cached"] and "midnight" in newer["text"]
    with service.client(user) as client:
        assert client.delete(f"/documents/{other['id']}").status_code == 204
    last = service.predict(user, QUESTION, documents=True)
    assert "midnight" not in last["text"] and "midnight" not in json.dumps(last)


def test_private_answers_are_no_examples_and_no_training_rows(service: Service, ana: Account) -> None:
    plain = service.predict(ana, "What is the colour of the pier at noon?")
    shown = service.predict(ana, QUESTION, documents="sea")
    admin = service.admin()
    with service.client(ana) as client:
        for prediction in (plain, shown):
            given = {
                "prediction_id": prediction["id"],
                "correction": f"Better words {prediction['id'][-4:]}.",
                "rating": "down",
            }
            assert client.post("/feedback", json=given).status_code == 201
        items = client.get("/feedback").json()["items"]
    with service.client(admin) as client:
        for each in items:
            assert client.post(f"/feedback/{each['id']}/review", json={"decision": "approve"}).status_code == 200
        exported = client.get("/feedback/export", params={"format": "sft"}).text
        preview = client.post("/training/snapshots/preview", json={})
    assert plain["id"] in exported and shown["id"] not in exported
    assert preview.json()["report"]["feedback"]["context"] == 1
    ben = service.user()
    assert "Better words" not in service.predict(ben, QUESTION)["text"]
    assert "Better words" in service.predict(ben, "What is the colour of the pier at noon?")["text"]
