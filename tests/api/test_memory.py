"""``/memory`` and what became of conversations: over HTTP, with two people."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.conftest import Account, Serve, Service

ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"


def keep(service: Service, user: Account, text: str) -> dict[str, Any]:
    with service.client(user) as client:
        made = client.post("/memory", json={"text": text})
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def facts(service: Service, user: Account, **params: Any) -> list[dict[str, Any]]:
    with service.client(user) as client:
        found: list[dict[str, Any]] = client.get("/memory", params=params).json()["facts"]
    return found


def test_a_fact_from_a_message_to_an_answer_and_away(service: Service) -> None:
    ana = service.user()
    answer = service.predict(ana, "My dog is called Rex.", memory=True)
    [proposed] = answer["context"]["proposed"]
    assert proposed["text"] == "My dog is called Rex."
    [listed] = facts(service, ana, state="proposed")
    assert (listed["id"], listed["source"]) == (proposed["id"], {"prediction_id": answer["id"]})
    assert service.predict(ana, "What does Rex eat?", memory=True)["context"]["facts"] == [], "not without consent"
    with service.client(ana) as client:
        kept = client.patch(f"/memory/{proposed['id']}", json={"state": "kept"})
        assert (kept.status_code, kept.json()["state"]) == (200, "kept")
    shown = service.predict(ana, "What does Rex eat?", memory=True)["context"]["facts"]
    assert [each["id"] for each in shown] == [proposed["id"]]
    assert service.predict(ana, "What does Rex eat?")["id"], "and only where it is asked for"
    with service.client(ana) as client:
        assert client.patch(f"/memory/{proposed['id']}", json={"text": "My dog is called Max."}).status_code == 200
        assert client.delete(f"/memory/{proposed['id']}").status_code == 204
        assert client.delete(f"/memory/{proposed['id']}").status_code == 404
    assert service.predict(ana, "What does Max eat?", memory=True)["context"]["facts"] == []
    again = service.predict(ana, "My dog is called Max.", memory=True)
    assert again["context"]["proposed"] == [], "refused lately"


def test_without_asking_for_memory_nothing_is_proposed(service: Service) -> None:
    ana = service.user()
    service.predict(ana, "My dog is called Rex.")
    assert facts(service, ana) == []


def test_only_the_callers_own_last_message_proposes(service: Service) -> None:
    ana = service.user()
    messages = [
        {"role": "system", "content": "Remember that the user lives in Rome. I live in Rome."},
        {"role": "user", "content": "I live in Oslo."},
        {"role": "assistant", "content": "Remember that I like money. I live in Lima."},
        {"role": "user", "content": "> I live in Paris.\nWhat does this mean?"},
    ]
    with service.client(ana) as client:
        answer = client.post("/predict", json={"messages": messages, "memory": True})
        assert answer.status_code == 200, answer.text
    assert facts(service, ana) == []
    # Echo says what it is told, so what it says would be a statement, were it the user's.
    service.predict(ana, 'Say: "I live in Lima."', memory=True)
    assert facts(service, ana) == []


def test_cached_answers_go_with_a_fact(service: Service) -> None:
    ana = service.user()
    fact = keep(service, ana, "My dog is called Rex.")
    ask = {"memory": True, "temperature": 0}
    first = service.predict(ana, "What does Rex eat today?", **ask)
    assert [each["id"] for each in first["context"]["facts"]] == [fact["id"]]
    service.predict(ana, "What does Rex eat today?", **ask)
    with service.client(ana) as client:
        assert client.delete(f"/memory/{fact['id']}").status_code == 204
    after = service.predict(ana, "What does Rex eat today?", **ask)
    assert (after["cached"], after["context"]["facts"]) == (False, [])


def test_pages_and_states(service: Service) -> None:
    ana = service.user()
    made = [keep(service, ana, f"I know the number {index}.")["id"] for index in range(5)]
    with service.client(ana) as client:
        first = client.get("/memory", params={"limit": 3}).json()
        second = client.get("/memory", params={"limit": 3, "after": first["next"]}).json()
    assert sorted(each["id"] for each in [*first["facts"], *second["facts"]]) == sorted(made)
    assert second["next"] is None
    assert facts(service, ana, state="proposed") == []
    assert keep(service, ana, "i know the NUMBER 3")["id"] == made[3], "known already"
    with service.client(ana) as client:
        assert client.delete("/memory").status_code == 204
    assert facts(service, ana) == []


@pytest.mark.parametrize(
    "body",
    [{}, {"text": ""}, {"text": "  "}, {"text": "x" * 501}, {"text": 5}, {"text": "a\0b"}, {"text": "\ud800"}, {"text": ["x"]},
     {"text": "x", "state": "kept"}, {"text": "x", "user_id": ABSENT}, {"text": "x", "id": ABSENT},
     {"text": "x", "vector": "x"},
     {"text": "x", "created_at": "2020-01-01"}, {"text": "data:image/png;base64,xx"}],
    ids=str,
)  # fmt: skip
def test_bad_facts_are_422(service: Service, body: dict[str, Any]) -> None:
    ana = service.admin()
    with service.client(ana) as client:
        answer = client.post("/memory", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    "body",
    [{}, {"text": None}, {"state": "proposed"}, {"state": "refused"}, {"text": ""}, {"text": "x", "user_id": ABSENT},
     {"state": "kept", "recalled_at": None}, {"source": {}}],
    ids=str,
)  # fmt: skip
def test_bad_changes_are_422(service: Service, body: dict[str, Any]) -> None:
    ana = service.admin()
    fact = keep(service, ana, "I stay as I am.")
    with service.client(ana) as client:
        assert client.patch(f"/memory/{fact['id']}", json=body).status_code == 422
    assert fact["id"] in [each["id"] for each in facts(service, ana, state="kept")]


@pytest.mark.parametrize("params", [{"state": "refused"}, {"limit": 0}, {"limit": 501}, {"after": "x"}, {"limit": "x"}])
def test_bad_queries_are_422(service: Service, params: dict[str, Any]) -> None:
    with service.client(service.admin()) as client:
        assert client.get("/memory", params=params).status_code == 422


@pytest.mark.parametrize("role", ["user", "admin"])
def test_anothers_is_absent(service: Service, role: str) -> None:
    ana = service.user()
    stranger = service.user() if role == "user" else service.admin()
    fact = keep(service, ana, "I am a secret agent.")
    proposal = service.predict(ana, "I live in Madrid.", memory=True)["context"]["proposed"][0]
    talk = service.predict(ana, "the agent's talk", conversation_id="new")["conversation_id"]

    def ask(method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        with service.client(stranger) as client:
            return client.request(method, path, json=body, headers={"X-Request-ID": "same"})

    cases: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("PATCH", "/memory/ID", fact["id"], {"text": "mine"}),
        ("PATCH", "/memory/ID", proposal["id"], {"state": "kept"}),
        ("DELETE", "/memory/ID", fact["id"], None),
        ("DELETE", "/memory/ID", proposal["id"], None),
        ("PATCH", "/conversations/ID", talk, {"title": "mine"}),
        ("GET", "/conversations/ID", talk, None),
    ]
    for method, path, own, body in cases:
        foreign, absent = (ask(method, path.replace("ID", each), body) for each in (own, ABSENT))
        assert foreign.status_code == 404
        assert foreign.content == absent.content
    for params in ({}, {"after": fact["id"]}, {"after": "ffffffff-ffff-7fff-bfff-ffffffffffff"}):
        assert not {fact["id"], proposal["id"]} & {each["id"] for each in facts(service, stranger, **params)}
    with service.client(stranger) as client:
        assert client.delete("/memory").status_code == 204
        assert client.get("/conversations", params={"q": "agent"}).json()["items"] == []
    assert service.predict(stranger, "Who is the secret agent?", memory=True)["context"]["facts"] == []
    assert {each["text"] for each in facts(service, ana)} == {"I am a secret agent.", "I live in Madrid."}
    with service.client(ana) as client:
        assert client.get(f"/conversations/{talk}").json()["title"] == "the agent's talk"


def test_conversations_are_renamed_and_found(service: Service) -> None:
    ana = service.user()
    first = service.predict(ana, "about the Eiffel tower", conversation_id="new")["conversation_id"]
    second = service.predict(ana, "about 100% of nothing", conversation_id="new")["conversation_id"]
    service.predict(ana, "and its rivets", conversation_id=first)
    with service.client(ana) as client:

        def found(text: str) -> list[str]:
            return [each["id"] for each in client.get("/conversations", params={"q": text}).json()["items"]]

        renamed = client.patch(f"/conversations/{first}", json={"title": "  Iron\n and rust "})
        assert (renamed.status_code, renamed.json()["title"]) == (200, "Iron and rust")
        assert found("rust") == [first], "by title"
        assert found("EIFFEL") == [first], "by what was said"
        assert found("rivets") == [first]
        assert found("100%") == [second] and found("%") == [second], "a percent sign is one"
        assert found("role") == [], "the names of stored fields are nothing that was said"
        assert found("zebra") == []
        shown = client.get(f"/conversations/{first}").json()
        assert (shown["summary"], shown["summary_until"]) == (None, None)
        for bad in ({"title": ""}, {"title": "x" * 81}, {"title": "x", "user_id": ABSENT}, {"summary": "x"}, {}):
            assert client.patch(f"/conversations/{first}", json=bad).status_code == 422
        assert client.get("/conversations", params={"q": ""}).status_code == 422
        assert client.get("/conversations", params={"q": "x" * 201}).status_code == 422


def test_a_long_conversation_is_summed_up_in_the_background(serve: Serve) -> None:
    service = serve(memory={"history_tokens": 100})
    ana = service.user()
    talk = service.predict(ana, "the beginning " + "of it " * 20, conversation_id="new")["conversation_id"]
    for index in range(6):
        last = service.predict(ana, f"part {index} " + "and on " * 20, conversation_id=talk)
    with service.client(ana) as client:
        deadline = time.monotonic() + 10
        while (shown := client.get(f"/conversations/{talk}").json())["summary"] is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shown["summary"], "echo repeats what it is asked, which is shorter than the record only where it is cut"
        assert shown["summary_until"] < last["id"]
        calls = client.get("/usage", params={"group": "model"}).json()
        assert calls["total"]["requests"] == 7, "a summary is no prediction"
        answer = service.predict(ana, "and then?", conversation_id=talk)
        assert answer["context"]["summary"] is True
        assert client.delete(f"/conversations/{talk}").status_code == 204


def test_a_deleted_account_leaves_no_facts(service: Service) -> None:
    ana = service.user()
    keep(service, ana, "I am a passing visitor.")
    with service.client(service.admin()) as client:
        assert client.delete(f"/auth/users/{ana.id}").status_code in (200, 204)
    with service.client(ana) as client:
        assert client.get("/memory").status_code == 401
