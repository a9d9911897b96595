"""Promotion from outside: bodies, rights, the canary's routes, and the command line."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.core.records import RunRecord, VersionRecord
from app.db.versions import Versions
from tests.cli.conftest import Cli
from tests.conftest import Serve, Service


def versions_of(service: Service) -> dict[str, str]:
    with service.client(service.admin()) as admin:
        return {each["model"]: each["id"] for each in admin.get("/model/versions").json()["items"]}


def loaded(serve: Serve) -> tuple[Service, dict[str, str]]:
    """A service that has loaded two models and serves the first."""
    service = serve()
    with service.client(service.admin()) as admin:
        assert admin.post("/model", json={"provider": "echo", "model": "upper"}).status_code == 200
        assert admin.post("/model/rollback").status_code == 200
    return service, versions_of(service)


async def failed_version(service: Service) -> str:
    """A version of a run whose gate failed."""
    now, version = datetime.now(UTC), "0123456789abcdef"
    await service.services.runs.add(
        RunRecord(
            id="0190aaaa-0000-7000-8000-000000000000",
            created_at=now,
            created_by=None,
            state="succeeded",
            phase="done",
            method="dpo",
            promote="never",
            config={},
            version=version,
            gate={"verdict": "fail", "checks": [{"name": "forgetting", "passed": False}]},
        )
    )
    details = {"device": "auto", "adapter": "0190aaaa-0000-7000-8000-000000000000"}
    await Versions(service.services.database).put(
        VersionRecord(version, "echo", "echo", "b" * 64, "a" * 64, None, now, details)
    )
    return version


def test_a_canary_from_its_start_to_its_end(serve: Serve) -> None:
    service, ids = loaded(serve)
    users = [service.user() for _ in range(4)]
    with service.client(service.admin()) as admin, service.client(users[0]) as client:
        assert client.get("/model/canary").status_code == 404
        assert admin.post("/model/canary/stop").status_code == 409
        made = admin.post("/model/promote", json={"version": ids["upper"], "share": 0.5})
        assert made.status_code == 200, made.text
        assert (made.json()["version"], made.json()["control_version"]) == (ids["upper"], ids["echo"])
        assert (made.json()["state"], made.json()["share"]) == ("running", 0.5)
        shown = client.get("/model").json()
        assert shown["version"] == ids["echo"]
        assert shown["canary"]["version"] == ids["upper"]
        answers = [service.predict(user, "abc") for user in users for _ in range(2)]
        assert all((each["version"] == ids["upper"]) is (each["text"] == "ABC") for each in answers)
        assert all(first["version"] == second["version"] for first, second in zip(answers[::2], answers[1::2], strict=True))
        again = admin.post("/model/promote", json={"version": ids["upper"], "share": 0.1})
        assert again.status_code == 409
        stopped = admin.post("/model/canary/stop")
        assert (stopped.status_code, stopped.json()["state"]) == (200, "stopped")
        assert client.get("/model/canary").json()["state"] == "stopped"
        assert client.get("/model").json()["canary"] is None
        assert {service.predict(user, "abc")["version"] for user in users} == {ids["echo"]}


def test_promotion_and_rollback_show_what_was_before(serve: Serve) -> None:
    service, ids = loaded(serve)
    with service.client(service.admin()) as admin:
        promoted = admin.post("/model/promote", json={"version": ids["upper"]}).json()
        assert (promoted["alias"], promoted["version"], promoted["previous"]["version"]) == (
            "default",
            ids["upper"],
            ids["echo"],
        )
        assert "previous" not in promoted["previous"]
        assert admin.get("/model").json()["previous"]["version"] == ids["echo"]
        assert admin.post("/model/rollback").json()["version"] == ids["echo"]
        assert admin.post("/model/rollback").status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {"version": "0123456789ABCDEF"},
        {"version": "../../etc/passwd"},
        {"version": "0" * 15},
        {"version": "0" * 16, "share": 0},
        {"version": "0" * 16, "share": 0.009},
        {"version": "0" * 16, "share": 0.51},
        {"version": "0" * 16, "share": "0.1"},
        {"version": "0" * 16, "share": True},
        {"version": "0" * 16, "override": "because"},
        {"version": "0" * 16, "override": {}},
        {"version": "0" * 16, "override": {"reason": ""}},
        {"version": "0" * 16, "override": {"reason": "x" * 501}},
        {"version": "0" * 16, "override": {"reason": "x", "by": "me"}},
        {"version": "0" * 16, "alias": "default"},
        {},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_bad_bodies(service: Service, body: dict[str, Any]) -> None:
    with service.client(service.admin()) as admin:
        answer = admin.post("/model/promote", json=body)
    assert answer.status_code in (400, 422), answer.text


def test_what_failed_its_gate_needs_an_override(serve: Serve) -> None:
    service, _ = loaded(serve)
    version = asyncio.run_coroutine_threadsafe(failed_version(service), _loop(service)).result(10)
    with service.client(service.admin()) as admin, service.client(service.user()) as client:
        refused = admin.post("/model/promote", json={"version": version})
        assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (409, "not-promotable")
        assert "forgetting" in refused.json()["detail"]
        assert admin.post("/model/promote", json={"version": version, "share": 0.2}).status_code == 409
        for path in ("/model/promote", "/model/canary/stop", "/model/rollback"):
            assert client.post(path, json={"version": version, "override": {"reason": "me"}}).status_code == 403
        # Echo takes no adapters, so that the override comes as far as the load, and nothing changes.
        assert admin.post("/model/promote", json={"version": version, "override": {"reason": "I know."}}).status_code == 422
        assert client.get("/model").json()["model"] == "echo"


def test_the_command_line(serve: Serve, tmp_path: Path) -> None:
    service, ids = loaded(serve)
    with service.client(service.admin()) as admin:
        made = admin.post("/auth/keys", json={"name": "cli", "scopes": ["read", "admin"]})
        assert made.status_code == 201, made.text
    cli = Cli(tmp_path, {"APRENDIZ_API_KEY": made.json()["key"]})

    def run(*arguments: str, code: int = 0) -> str:
        return cli("models", *arguments, "--url", service.url, code=code).stderr

    assert "25% of the sessions: running" in run("promote", ids["upper"], "--share", "0.25")
    assert "running" in run("canary")
    assert "stopped" in run("canary", "--stop")
    assert "No canary runs" in run("canary", "--stop", code=1)
    assert f"echo/upper serves now (version {ids['upper']})" in run("promote", ids["upper"])
    assert "echo/echo serves now" in run("rollback")
    version = asyncio.run_coroutine_threadsafe(failed_version(service), _loop(service)).result(10)
    assert "failed its gate (forgetting)" in run("promote", version, code=1)
    assert "takes no adapters" in run("promote", version, "--override", "I know.", code=1)


def _loop(service: Service) -> asyncio.AbstractEventLoop:
    ticker = service.services.promotion._ticker
    assert ticker is not None
    return ticker.get_loop()
