"""``/health``, ``/metrics``, ``/model`` and ``/docs``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import app.llm_api
import app.main
from app.api.routers.model import _safe_model
from app.core.errors import InvalidRequest
from tests.conftest import Serve, Service, make_settings


def test_live_and_ready(service: Service) -> None:
    with service.client() as client:
        assert client.get("/health/live").json() == {"live": True}
        ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["ready"] is True
    assert set(ready.json()["checks"]) == {"database", "model", "draining"}


def test_ready_says_what_is_wrong(serve: Serve) -> None:
    service = serve()
    service.services.draining.set()
    with service.client() as client:
        answer = client.get("/health/ready")
        assert client.get("/health/live").status_code == 200
    assert answer.status_code == 503
    assert answer.json()["checks"]["draining"] == {"ok": False, "detail": "The service is shutting down."}
    service.services.draining.clear()


def test_metrics_open_by_token_and_count_by_template(serve: Serve) -> None:
    service = serve(metrics={"token": "metrics-token-canary"})
    user = service.user()
    service.predict(user)
    proxied = {"X-Forwarded-For": "10.1.1.1"}
    with service.client() as client:
        for number in range(200):
            client.get(f"/random/{number}", headers={"User-Agent": f"agent {number}"})
            if number < 20:
                client.request("GET", f"/conversations/{number}", headers=user.headers)
                client.get(f"/static/{number}")
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers=proxied).status_code == 403
        for token, status in (("metrics-token-canary", 200), ("metrics-token-canarx", 403), ("x", 403)):
            answer = client.get("/metrics", headers={**proxied, "Authorization": f"Bearer {token}"})
            assert answer.status_code == status
        text = client.get("/metrics").text
    assert 'route="/conversations/{conversation_id}"' in text
    assert 'route="/predict"' in text
    assert 'route="unmatched"' in text
    assert 'route="/static/{path:path}"' in text
    assert "metrics-token" not in text
    assert user.username not in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 2000


def test_the_model_and_its_changes(serve: Serve) -> None:
    service = serve()
    user = service.user()
    with service.client(service.admin()) as admin, service.client(user) as client:
        first = client.get("/model").json()
        assert (first["provider"], first["model"], first["state"]) == ("echo", "echo", "ready")
        assert first["engines"] is None
        switched = admin.post("/model", json={"provider": "echo", "model": "upper"})
        assert switched.status_code == 200, switched.text
        assert switched.json()["model"] == "upper"
        assert switched.json()["engines"]
        assert client.post("/predict", json={"prompt": "abc"}).json()["text"] == "ABC"
        assert admin.post("/model/rollback").json()["model"] == "echo"
        assert client.post("/predict", json={"prompt": "abc"}).json()["text"] == "abc"
        versions = {version["model"]: version["id"] for version in client.get("/model/versions").json()["items"]}
        assert admin.post("/model/promote", json={"version": versions["upper"]}).status_code == 200
        assert client.get("/model").json()["version"] == versions["upper"]
        assert admin.post("/model/reload").json()["state"] == "ready"
        failed = admin.post("/model", json={"provider": "echo", "model": "unloadable"})
        assert failed.status_code == 422
        assert client.post("/predict", json={"prompt": "abc"}).json()["text"] == "ABC"


BAD_MODELS = [
    {"provider": "echo", "model": "../../etc/passwd"},
    {"provider": "echo", "model": "/etc/passwd"},
    {"provider": "hf", "model": "/proc/self/environ"},
    {"provider": "hf", "model": "~root/x"},
    {"provider": "hf", "model": "a\\..\\b"},
    {"provider": "hf", "model": "a\0b"},
    {"provider": "hf", "model": "x" * 257},
    {"provider": "hf", "model": ""},
    {"provider": "hf", "model": "./../secret.gguf"},
    {"provider": "hf", "model": "a/b/../../../c"},
    {"provider": "../x", "model": "a"},
    {"provider": "HF", "model": "a"},
    {"provider": "echo", "model": "echo", "device": "gpu"},
    {"provider": "echo", "model": "echo", "argv": ["sh"]},
    {"provider": "echo", "model": 1},
]


@pytest.mark.parametrize("body", BAD_MODELS, ids=str)
def test_bad_model_requests_are_422(service: Service, body: dict[str, object]) -> None:
    with service.client(service.admin()) as admin:
        assert admin.post("/model", json=body).status_code == 422


def test_paths_stay_in_the_models_folder(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "inside.gguf").touch()
    (models / "link.gguf").symlink_to("/etc/passwd")
    assert _safe_model("gpt2", models) == "gpt2"
    assert _safe_model("org/name", models) == "org/name"
    assert _safe_model("inside.gguf", models) == str(models / "inside.gguf")
    assert _safe_model(str(models / "inside.gguf"), models) == str(models / "inside.gguf")
    for path in ("link.gguf", "/etc/passwd", str(tmp_path / "other.gguf")):
        with pytest.raises(InvalidRequest):
            _safe_model(path, models)


@pytest.mark.parametrize(("docs", "stranger", "admin"), [("open", 200, 200), ("off", 404, 404)])
def test_the_reference_as_the_setting_says(serve: Serve, docs: str, stranger: int, admin: int) -> None:
    service = serve(server={"docs": docs})
    for path in ("/docs", "/openapi.json"):
        with service.client() as client, service.client(service.admin()) as by_admin:
            assert client.get(path).status_code == stranger
            assert by_admin.get(path).status_code == admin


def test_logout_ends_a_token_and_needs_none(service: Service) -> None:
    user = service.user()
    with service.client(user) as client:
        assert client.post("/auth/logout").status_code == 204
        assert client.get("/model").status_code == 401
        assert client.post("/auth/logout").status_code == 204


def test_predict_limits_hold_per_user_and_key(serve: Serve) -> None:
    service = serve(rate_limits={"predict": "3/minute"})
    user, other = service.user(), service.user()
    with service.client(user) as client:
        statuses = [client.post("/predict", json={"prompt": "a"}).status_code for _ in range(5)]
        limited = client.post("/predict", json={"prompt": "a", "stream": True})
    assert statuses == [200, 200, 200, 429, 429]
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) >= 1
    assert service.predict(other)["text"] == "hello"


def test_importing_does_nothing_and_loads_no_model_library(tmp_path: Path) -> None:
    script = (
        "import os, sys, threading; import app.main, app.llm_api; "
        "heavy = {'torch', 'transformers', 'gguf', 'xllamacpp', 'safetensors'} & set(sys.modules); "
        "assert not heavy, heavy; assert threading.active_count() == 1; assert os.listdir() == []"
    )
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environ, check=True, timeout=60)


def test_an_unknown_name_of_the_entry_points_is_an_attribute_error() -> None:
    for module in (app.main, app.llm_api):
        with pytest.raises(AttributeError):
            _ = module.nothing


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ({"port": 8000}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 1}, "http://127.0.0.1:1"),
        ({"host": "::1", "port": 2}, "http://[::1]:2"),
        ({"public_url": "https://llm.example.org/"}, "https://llm.example.org"),
    ],
)
def test_the_printed_address(tmp_path: Path, server: dict[str, object], address: str) -> None:
    assert make_settings(tmp_path, server=server).server.url == address
