"""The response cache, prices, budgets and ``/usage`` from outside: a real service, the echo provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Account, Serve, Service, make_settings, running

CENT_A_TOKEN = {"input": 0, "output": 10_000}
PRICES = {"prices": {"echo/*": CENT_A_TOKEN}}


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service where a token of an answer costs a cent."""
    with running(make_settings(tmp_path_factory.mktemp("priced"), costs=PRICES)) as service:
        yield service


def ask(service: Service, account: Account, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    with service.client(account) as client:
        answer = client.post("/predict", json={"prompt": prompt, "temperature": 0, **more}, headers=headers or {})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def usage(service: Service, account: Account, **query: Any) -> dict[str, Any]:
    with service.client(account) as client:
        answer = client.get("/usage", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(service: Service, account: Account, prompt: str) -> tuple[str, dict[str, Any]]:
    with service.client(account) as client:
        answer = client.post("/predict", json={"prompt": prompt, "temperature": 0, "stream": True})
    assert answer.status_code == 200, answer.text
    events = [block.split("\n") for block in answer.text.strip().split("\n\n") if not block.startswith(":")]
    found = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]
    assert found[-1][0] == "done"
    return "".join(data["text"] for name, data in found if name == "delta"), found[-1][1]


def test_the_same_question_twice_is_answered_from_the_cache(service: Service) -> None:
    ana, bea = service.user(), service.user()
    first, second = ask(service, ana, "once more"), ask(service, ana, "once more")
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["id"] != second["id"]
    for name in ("text", "model", "version", "finish_reason", "usage"):
        assert first[name] == second[name]
    assert not ask(service, bea, "once more")["cached"]
    with service.client(ana) as client:
        rated = client.post("/feedback", json={"prediction_id": second["id"], "rating": "up"})
    assert rated.status_code in (200, 201), rated.text


@pytest.mark.parametrize(
    ("control", "cached"),
    [("no-store", False), ("no-cache", False), ("max-age=0", False), ("max-age=60", True), ("private", True)],
)
def test_the_callers_cache_control_is_heard(service: Service, control: str, cached: bool) -> None:
    ana = service.user()
    ask(service, ana, "hear me")
    assert ask(service, ana, "hear me", {"Cache-Control": control})["cached"] is cached


def test_a_caller_may_accept_any_earlier_answer(service: Service) -> None:
    ana = service.user()
    control = {"Cache-Control": "max-age=60"}
    assert not ask(service, ana, "any will do", control, temperature=0.9)["cached"]
    assert not ask(service, ana, "any will do", temperature=0.9)["cached"]
    assert ask(service, ana, "any will do", control, temperature=0.9)["cached"]


def test_several_choices_are_not_made_the_same_by_the_cache(service: Service) -> None:
    body = {"messages": [{"role": "user", "content": "choose"}], "model": "default", "n": 2, "temperature": 0.9}
    with service.client(service.user()) as client:
        for _ in range(2):
            answer = client.post("/v1/chat/completions", json=body, headers={"Cache-Control": "max-age=60"})
            assert answer.status_code == 200, answer.text
            assert "x-aprendiz-cached" not in answer.headers
        again = client.post("/v1/chat/completions", json={**body, "n": 1, "temperature": 0})
        assert "x-aprendiz-cached" not in again.headers
        again = client.post("/v1/chat/completions", json={**body, "n": 1, "temperature": 0})
        assert again.headers["x-aprendiz-cached"] == "true"


def test_a_stream_is_replayed_whole(service: Service) -> None:
    ana = service.user()
    text, done = streamed(service, ana, "tell me a story of three words")
    again, done_again = streamed(service, ana, "tell me a story of three words")
    assert again == text == done["text"]
    assert (done["cached"], done_again["cached"]) == (False, True)
    assert done["usage"] == done_again["usage"]
    whole = ask(service, ana, "tell me a story of three words")
    assert (whole["cached"], whole["text"]) == (True, text)


def test_what_a_conversation_is_given_again_belongs_to_it(service: Service) -> None:
    ana = service.user()
    first = ask(service, ana, "hello there", conversation_id="new")
    second = ask(service, ana, "hello there", conversation_id="new")
    assert second["cached"] and second["conversation_id"] != first["conversation_id"]
    with service.client(ana) as client:
        shown = client.get(f"/conversations/{second['conversation_id']}").json()
    assert [turn["id"] for turn in shown["turns"]] == [second["id"]]


def test_what_a_user_deletes_is_not_given_again(service: Service) -> None:
    ana = service.user()
    first = ask(service, ana, "delete me", conversation_id="new")
    with service.client(ana) as client:
        assert client.delete(f"/conversations/{first['conversation_id']}").status_code == 204
    assert not ask(service, ana, "delete me")["cached"]


def test_who_is_deleted_leaves_no_answers(serve: Serve) -> None:
    service = serve()
    ana = service.user()
    ask(service, ana, "delete all of me")
    size = service.services.metrics.registry.get_sample_value("aprendiz_cache_bytes")
    with service.client(service.admin()) as client:
        assert client.delete(f"/auth/users/{ana.id}").status_code == 204
    assert size and service.services.metrics.registry.get_sample_value("aprendiz_cache_bytes") == 0


def test_fifty_at_once_ask_the_model_once(service: Service) -> None:
    ana = service.user()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: ask(service, ana, "all of us at once, please"), range(50)))
    assert sum(not each["cached"] for each in answers) == 1
    assert len({each["id"] for each in answers}) == 50
    assert len({each["text"] for each in answers}) == 1


def test_promotion_purges(serve: Serve) -> None:
    service = serve()
    admin = service.admin()
    ask(service, admin, "hello")
    size = service.services.metrics.registry.get_sample_value("aprendiz_cache_bytes")
    assert size
    with service.client(admin) as client:
        switched = client.post("/model", json={"provider": "echo", "model": "upper"})
        assert switched.status_code == 200, switched.text
    assert service.services.metrics.registry.get_sample_value("aprendiz_cache_bytes") == 0
    assert not ask(service, admin, "hello")["cached"]


def test_usage_counts_calls_tokens_and_dollars(priced: Service) -> None:
    ana = priced.user()
    with priced.client(ana) as client:
        made = client.post("/auth/keys", json={"name": "laptop", "scopes": ["predict", "read"]}).json()
    answers = [ask(priced, ana, "one two three"), ask(priced, ana, "one two three")]
    with_key = ask(priced, Account("", "", made["key"], "user"), "four five")
    tokens = answers[0]["usage"]["completion_tokens"] + with_key["usage"]["completion_tokens"]
    cost = pytest.approx(tokens / 100, abs=1e-12)
    found = usage(priced, ana)
    assert found["group"] == "model"
    [row] = found["rows"]
    assert row == {**found["total"], "name": "echo/echo"}
    assert (row["requests"], row["cached"], row["errors"]) == (3, 1, 0)
    assert row["cost_usd"] == cost
    assert row["completion_tokens"] == tokens + answers[1]["usage"]["completion_tokens"]
    by_key = {row["name"]: row["requests"] for row in usage(priced, ana, group="key")["rows"]}
    assert by_key == {None: 2, made["id"]: 1}
    today = datetime.now(UTC).date().isoformat()
    days = [row["name"] for row in usage(priced, ana, group="day")["rows"]]
    assert days == [today] or len(days) == 2  # midnight
    assert usage(priced, Account("", "", made["key"], "user"))["total"] == found["total"]


def test_usage_is_ones_own_and_an_admin_sees_all(priced: Service) -> None:
    ana, bea, admin = priced.user(), priced.user(), priced.admin()
    ask(priced, ana, "mine")
    assert usage(priced, bea)["total"]["requests"] == 0
    assert usage(priced, bea)["rows"] == []
    assert usage(priced, ana, user_id=ana.id)["total"]["requests"] == 1
    assert usage(priced, admin, user_id=ana.id)["total"]["requests"] == 1
    assert {row["name"] for row in usage(priced, admin, group="user")["rows"]} >= {ana.id}
    assert usage(priced, admin, user_id="all")["total"]["requests"] >= 1
    assert usage(priced, admin, group="user", user_id=ana.id)["rows"][0]["name"] == ana.id
    with priced.client(bea) as client:
        for query in ({"user_id": ana.id}, {"group": "user"}, {"user_id": "all"}, {"user_id": "nobody"}):
            assert client.get("/usage", params=query).status_code == 403


def test_usage_of_a_span(priced: Service) -> None:
    ana = priced.user()
    ask(priced, ana, "now")
    now = datetime.now(UTC) + timedelta(seconds=1)
    assert usage(priced, ana, since=(now - timedelta(minutes=1)).isoformat())["total"]["requests"] == 1
    found = usage(priced, ana, until=(now - timedelta(minutes=1)).isoformat())
    assert found["total"]["requests"] == 0 and "from" in found and "until" in found
    assert usage(priced, ana, since=now.date().isoformat())["rows"]


@pytest.mark.parametrize(
    "query",
    [
        {"group": "hour"},
        {"since": "yesterday"},
        {"since": "0001-01-01T00:00:00Z"},
        {"until": "9999-12-31T23:59:59-12:00"},
        {"until": "-1e300"},
        {"since": "nan"},
        {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"since": "2024-01-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"user_id": "x" * 37},
        {"user_id": "\x00"},
        {"user_id": ""},
    ],
)
def test_usage_refuses_what_makes_no_sense(priced: Service, query: dict[str, str]) -> None:
    with priced.client(priced.admin()) as client:
        answer = client.get("/usage", params=query)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_budget_stops_with_words_and_a_time(serve: Serve) -> None:
    service = serve(costs={**PRICES, "budgets": {"user": "0.05/day"}})
    ana = service.user()
    ask(service, ana, "one two three four five six", temperature=0.5)
    with service.client(ana) as client:
        refused = client.post("/predict", json={"prompt": "more"})
    assert refused.status_code == 429, refused.text
    assert refused.json()["type"].endswith("budget-exhausted")
    assert "0.05 US dollars a day" in refused.json()["detail"]
    assert int(refused.headers["Retry-After"]) > 80_000
    assert usage(service, ana)["total"]["requests"] == 1
    ask(service, service.user(), "another's budget")


def test_a_restart_keeps_what_was_spent(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_settings(tmp_path_factory.mktemp("again"), costs={**PRICES, "budgets": {"total": "0.05/month"}})
    with running(settings) as service:
        ana = service.user()
        ask(service, ana, "one two three four five six")
    with running(settings) as service, service.client(ana) as client:
        refused = client.post("/predict", json={"prompt": "more"})
    assert refused.status_code == 429
    assert "budget of this service" in refused.json()["detail"]
