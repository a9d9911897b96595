"""``/training`` over HTTP: a real service and a real child process that counts instead of training."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.core.ids import uuid7
from tests.conftest import Account, Serve, Service, make_settings, running
from tests.training.served_tools import counting

ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"
PATHS = ["../../etc/passwd", "..%2f..%2fjobs.lock", "jobs.lock", ABSENT.upper(), ABSENT + "%00", "~", "%2e%2e", "a" * 300]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = make_settings(tmp_path_factory.mktemp("service"))
    with running(settings, training_tools=counting(steps=10, step_s=0.01)) as service:
        yield service


@pytest.fixture(scope="module")
def done(trained: Service) -> dict[str, Any]:
    """A run that has ended well."""
    return ended(trained, start(trained, promote="if_passed")["id"])


def start(service: Service, code: int = 201, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    with service.client(service.admin()) as client:
        answer = client.post("/training/runs", json=body, headers=headers)
    assert answer.status_code == code, answer.text
    found: dict[str, Any] = answer.json()
    return found


def get(service: Service, path: str, code: int = 200, **more: Any) -> httpx.Response:
    with service.client(service.admin()) as client:
        answer = client.get(f"/training{path}", **more)
    assert answer.status_code == code, answer.text
    return answer


def ended(service: Service, run_id: str, *, timeout_s: float = 20) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        run: dict[str, Any] = get(service, f"/runs/{run_id}").json()
        if run["state"] not in ("queued", "running"):
            return run
        assert time.monotonic() < deadline, run
        time.sleep(0.05)


def events(text: str) -> list[tuple[str | None, str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_a_run_as_callers_see_it(trained: Service, done: dict[str, Any]) -> None:
    assert (done["state"], done["phase"], done["error"]) == ("succeeded", "done", None)
    assert done["gate"] == {
        "verdict": "pass",
        "checks": [{"name": "gain", "value": 0.3, "interval": [0.1, 0.5], "bound": 0.05, "passed": True, "detail": None}],
    }
    assert done["progress"]["percent"] == 100
    assert done["method"] == done["config"]["method"] == "sft"
    assert done["created_by"] == trained.admin().id
    assert done["started_at"] and done["ended_at"] and done["version"] and done["adapter"]
    listed = get(trained, "/runs").json()
    assert done in listed["items"]
    assert get(trained, "/runs?state=failed").json()["items"] == []
    assert str(trained.settings.data_dir) not in json.dumps(listed)
    snapshot = get(trained, f"/snapshots/{done['snapshot']}").json()
    assert snapshot in get(trained, "/snapshots").json()["items"]


def test_its_files(trained: Service, done: dict[str, Any]) -> None:
    path = f"/runs/{done['id']}"
    assert get(trained, f"{path}/report").json() == {"verdict": "pass"}
    page = get(trained, f"{path}/report?format=html")
    digest = base64.b64encode(hashlib.sha256(b"p{color:red}").digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}';" in page.headers["content-security-policy"]
    assert "sandbox" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    picture = get(trained, f"{path}/loss.png")
    assert picture.headers["content-type"] == "image/png"
    log = get(trained, f"{path}/log")
    assert log.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_link_in_a_run_folder_is_not_followed(trained: Service, done: dict[str, Any]) -> None:
    picture = trained.settings.data_dir / "runs" / done["id"] / "loss.png"
    kept = picture.read_bytes()
    picture.unlink()
    picture.symlink_to("/etc/passwd")
    with trained.client(trained.admin()) as client:
        answer = client.get(f"/training/runs/{done['id']}/loss.png")
    assert answer.status_code == 503 and "root:" not in answer.text
    picture.unlink()
    picture.write_bytes(kept)


def test_its_events_from_the_beginning_and_from_a_mark(trained: Service, done: dict[str, Any]) -> None:
    answer = get(trained, f"/runs/{done['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    heard = events(answer.text)
    names = [name for _, name, _ in heard]
    assert names.count("step") == 10
    assert names[-1] == "end" and heard[-1][2] == done
    mark = heard[5][0]
    assert mark is not None
    again = events(get(trained, f"/runs/{done['id']}/events", headers={"Last-Event-ID": mark}).text)
    assert again == heard[6:]
    behind = events(get(trained, f"/runs/{done['id']}/events", headers={"Last-Event-ID": "999999999"}).text)
    assert [name for _, name, _ in behind] == ["end"]
    get(trained, f"/runs/{done['id']}/events", 422, headers={"Last-Event-ID": "-1"})


def test_events_come_while_it_trains(serve: Serve) -> None:
    service = serve(training_tools=counting(steps=500, step_s=0.02))
    run = start(service)
    seen = []
    with service.client(service.admin()) as client, client.stream("GET", f"/training/runs/{run['id']}/events") as stream:
        for line in stream.iter_lines():
            seen.append(line)
            if line == "event: step" and seen.count(line) == 3:
                with service.client(service.admin()) as beside:
                    answer = beside.post(f"/training/runs/{run['id']}/cancel")
                assert answer.status_code == 202
    assert "event: cancelled" in seen and "event: end" in seen, seen[-9:]
    assert ended(service, run["id"])["state"] == "cancelled"
    with service.client(service.admin()) as client:
        assert client.post(f"/training/runs/{run['id']}/cancel").status_code == 409


def test_an_event_stream_ends_with_the_session(serve: Serve) -> None:
    service = serve(training_tools=counting(steps=2000, step_s=0.02))
    run = start(service)
    with service.client() as client:
        login = client.post(
            "/auth/token", json={"username": service.admin().username, "password": "a long enough passphrase 4 tests"}
        )
        other = Account(service.admin().id, "", login.json()["access_token"], "admin")
    begun = time.monotonic()
    with service.client(other) as client, client.stream("GET", f"/training/runs/{run['id']}/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        with service.client(other) as leaving:
            assert leaving.post("/auth/logout").status_code == 204
        rest = list(lines)
    assert time.monotonic() - begun < 8
    assert "event: problem" in rest and "event: end" not in rest
    with service.client(service.admin()) as client:
        client.post(f"/training/runs/{run['id']}/cancel")


def test_an_event_stream_ends_with_the_service(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_settings(tmp_path_factory.mktemp("service"))
    with running(settings, training_tools=counting(steps=100, step_s=0.02)) as service:
        run = start(service)
        with service.client(service.admin()) as client, client.stream("GET", f"/training/runs/{run['id']}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            service.server.should_exit = True
            begun = time.monotonic()
            rest = list(lines)
        assert time.monotonic() - begun < 5
        assert "event: end" not in rest
    # The child has lived on, and its end is found by the next start.
    with running(settings, training_tools=counting(steps=100, step_s=0.02)) as service:
        found = _row(service, run["id"])
    assert found["state"] == "succeeded"
    lives = (settings.data_dir / "runs" / run["id"] / "lives").read_text().split()
    assert len(lives) == 1


def _row(service: Service, run_id: str) -> dict[str, Any]:
    """How a run of a service whose admin we do not know ended."""
    deadline = time.monotonic() + 20
    while True:
        with sqlite3.connect(service.settings.data_dir / "aprendiz.db") as database:
            state, error = database.execute("SELECT state, error FROM runs WHERE id = ?", (run_id,)).fetchone()
        if state not in ("queued", "running"):
            return {"state": state, "error": error}
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_same_key_gives_the_same_run(trained: Service) -> None:
    key = {"Idempotency-Key": uuid7()}
    first = start(trained, headers=key, method="sft")
    with trained.client(trained.admin()) as client:
        again = client.post("/training/runs", json={"method": "sft"}, headers=key)
        other = client.post("/training/runs", json={"method": "auto"}, headers=key)
        bad = client.post("/training/runs", json={}, headers={"Idempotency-Key": "a b"})
    assert again.status_code == 201 and again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first["id"]
    assert other.status_code == 422 and other.json()["type"].endswith("idempotency-mismatch")
    assert bad.status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"method": "ppo"}, "method"),
        ({"config": {"rank": 0}}, "config.rank"),
        ({"config": {"rank": "16"}}, "config.rank"),
        ({"config": {"learning_rate": 1}}, "config.learning_rate"),
        ({"config": {"path": "/etc"}}, "config.path"),
        ({"config": {"method": "dpo"}, "method": "sft"}, "config.method"),
        ({"promote": "always"}, "promote"),
        ({"state": "succeeded"}, "state"),
        ({"version": "a" * 16}, "version"),
        ({"holdout": 1.5}, "holdout"),
        ({"rules": {"source": "file"}}, "rules.source"),
        ({"snapshot": ABSENT, "holdout": 0.5}, "rules"),
        ({"snapshot": "../x"}, "snapshot"),
    ],
)
def test_what_is_refused_names_its_field(trained: Service, body: dict[str, Any], field: str) -> None:
    assert start(trained, 422, **body)["field"].removeprefix("body.") == field


def test_an_unknown_snapshot(trained: Service) -> None:
    for name in (ABSENT, ABSENT.upper()):
        assert start(trained, 404, snapshot=name)["field"] == "snapshot"
        get(trained, f"/snapshots/{name}", 404)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("tail", ["", "/events", "/report", "/loss.png", "/log"])
def test_no_name_becomes_a_path(trained: Service, name: str, tail: str) -> None:
    with trained.client(trained.admin()) as client:
        absent = client.get(f"/training/runs/{ABSENT}{tail}")
        answer = client.get(f"/training/runs/{name}{tail}")
    assert absent.status_code == 404
    assert answer.status_code in (400, 404)
    if answer.status_code == 404 and "%2f" not in name and "/" not in name:
        assert {**answer.json(), "instance": ""} == {**absent.json(), "instance": ""}


def test_what_serves_cannot_be_trained(service: Service) -> None:
    refused = start(service, 409)
    assert refused["type"].endswith(("conflict", "training-unavailable", "too-little-feedback"))
    assert "models load" in refused["detail"] or "--setup-only" in refused["detail"]


def test_nothing_happens_for_other_users(trained: Service) -> None:
    run = start(trained)
    with trained.client(trained.user()) as client:
        for path in (f"/training/runs/{run['id']}", "/training/runs", f"/training/runs/{run['id']}/log"):
            assert client.get(path).status_code == 403
        assert client.post(f"/training/runs/{run['id']}/cancel").status_code == 403
    assert ended(trained, run["id"])["state"] == "succeeded"


def test_too_many_runs(serve: Serve) -> None:
    service = serve(training_tools=counting(steps=1), training={"runs_per_day": 2})
    for _ in range(2):
        start(service)
    with service.client(service.admin()) as client:
        answer = client.post("/training/runs", json={})
    assert answer.status_code == 429
    assert 86_000 < int(answer.headers["retry-after"]) <= 86_400
