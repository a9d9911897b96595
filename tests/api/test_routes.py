"""Who may do what: one table of all routes, default deny. A route without a row fails, and so does a row without a route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import compile_path
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.api.bodies import StrictRoute
from app.api.openapi import OPEN_OPERATIONS, inventory
from tests.conftest import PASSWORD, Service

USER, ADMIN = "user", "admin"
KEYS = {"key predict": ["predict"], "key feedback": ["feedback"], "key read": ["read"]}
ADMIN_KEY = "key admin"
EVERYBODY = frozenset({"nobody", "bad", USER, ADMIN, ADMIN_KEY, *KEYS})

ANYONE = EVERYBODY
PERSON = frozenset({USER, ADMIN})
ADMIN_PERSON = frozenset({ADMIN})
ADMINS = frozenset({ADMIN, ADMIN_KEY})
READ = PERSON | {"key read"}
PREDICT = PERSON | {"key predict"}

ROUTES: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/predict"): PREDICT,
    ("WS", "/predict/ws"): PREDICT,
    ("POST", "/v1/chat/completions"): PREDICT,
    ("POST", "/v1/completions"): PREDICT,
    ("POST", "/v1/embeddings"): PREDICT,
    ("GET", "/v1/models"): READ | PREDICT,
    ("GET", "/v1/models/{model:path}"): READ | PREDICT,
    ("POST", "/v1/messages"): PREDICT,
    ("POST", "/v1/messages/count_tokens"): PREDICT,
    ("POST", "/v1/responses"): PREDICT,
    ("POST", "/v1/responses/input_tokens"): PREDICT,
    ("GET", "/v1/responses/{response_id}"): PREDICT | READ,
    ("DELETE", "/v1/responses/{response_id}"): PREDICT,
    ("GET", "/v1/responses/{response_id}/input_items"): PREDICT | READ,
    ("POST", "/v1/responses/{response_id}/cancel"): PREDICT,
    ("POST", "/feedback"): ANYONE,  # by feedback token; with a prediction's id it needs the scope, see below
    ("GET", "/feedback"): READ,
    ("GET", "/feedback/export"): ADMINS,
    ("GET", "/feedback/review"): ADMINS,
    ("POST", "/feedback/import"): ADMINS,
    ("POST", "/feedback/{feedback_id}/review"): ADMINS,
    ("GET", "/model"): READ,
    ("POST", "/model"): ADMINS,
    ("GET", "/model/versions"): READ,
    ("POST", "/model/reload"): ADMINS,
    ("POST", "/model/promote"): ADMINS,
    ("POST", "/model/rollback"): ADMINS,
    ("GET", "/model/canary"): READ,
    ("POST", "/model/canary/stop"): ADMINS,
    ("POST", "/training/runs"): ADMINS,
    ("GET", "/training/runs"): ADMINS,
    ("GET", "/training/runs/{run_id}"): ADMINS,
    ("POST", "/training/runs/{run_id}/cancel"): ADMINS,
    ("GET", "/training/runs/{run_id}/events"): ADMINS,
    ("GET", "/training/runs/{run_id}/report"): ADMINS,
    ("GET", "/training/runs/{run_id}/loss.png"): ADMINS,
    ("GET", "/training/runs/{run_id}/log"): ADMINS,
    ("GET", "/training/snapshots"): ADMINS,
    ("POST", "/training/snapshots"): ADMINS,
    ("POST", "/training/snapshots/preview"): ADMINS,
    ("GET", "/training/snapshots/{snapshot_id}"): ADMINS,
    ("GET", "/training/lineage/predictions/{prediction_id}"): ADMINS,
    ("GET", "/training/lineage/versions/{version}"): ADMINS,
    ("GET", "/training/lineage/users/{user_id}"): ADMINS,
    ("GET", "/auth/me/lineage"): READ,
    ("POST", "/training/erasures"): ADMIN_PERSON,
    ("GET", "/usage"): READ,
    ("GET", "/conversations"): READ,
    ("GET", "/conversations/{conversation_id}"): READ,
    ("PATCH", "/conversations/{conversation_id}"): PREDICT,
    ("DELETE", "/conversations/{conversation_id}"): PREDICT,
    ("POST", "/documents"): PREDICT,
    ("GET", "/documents"): READ,
    ("DELETE", "/documents"): PREDICT,
    ("GET", "/documents/collections"): READ,
    ("POST", "/documents/search"): READ,
    ("GET", "/documents/{document_id}"): READ,
    ("DELETE", "/documents/{document_id}"): PREDICT,
    ("POST", "/documents/{document_id}/reindex"): PREDICT,
    ("GET", "/documents/{document_id}/file"): READ,
    ("GET", "/documents/{document_id}/events"): READ,
    ("GET", "/memory"): READ,
    ("POST", "/memory"): PREDICT,
    ("PATCH", "/memory/{fact_id}"): PREDICT,
    ("DELETE", "/memory/{fact_id}"): PREDICT,
    ("DELETE", "/memory"): PREDICT,
    ("GET", "/health/live"): ANYONE,
    ("GET", "/health/ready"): ANYONE,
    ("GET", "/metrics"): ADMINS,  # asked here as through a proxy; a bare loopback peer may read them
    ("GET", "/openapi.json"): ADMINS,
    ("GET", "/docs"): ADMINS,
    ("POST", "/auth/register"): ANYONE,
    ("POST", "/auth/login"): ANYONE,
    ("POST", "/auth/token"): ANYONE,
    ("POST", "/auth/refresh"): frozenset(),  # takes the refresh cookie and nothing else
    ("POST", "/auth/logout"): ANYONE,
    ("GET", "/auth/me"): READ,
    ("POST", "/auth/password"): PERSON,
    ("GET", "/auth/sessions"): PERSON,
    ("DELETE", "/auth/sessions"): PERSON,
    ("DELETE", "/auth/sessions/{session_id}"): PERSON,
    ("GET", "/auth/keys"): PERSON,
    ("POST", "/auth/keys"): PERSON,
    ("DELETE", "/auth/keys/{key_id}"): PERSON,
    ("GET", "/auth/invites"): ADMIN_PERSON,
    ("POST", "/auth/invites"): ADMIN_PERSON,
    ("DELETE", "/auth/invites/{invite_id}"): ADMIN_PERSON,
    ("GET", "/auth/users"): ADMIN_PERSON,
    ("PATCH", "/auth/users/{user_id}"): ADMIN_PERSON,
    ("DELETE", "/auth/users/{user_id}"): ADMIN_PERSON,
    ("GET", "/"): ANYONE,
    ("GET", "/login"): ANYONE,
    ("GET", "/setup"): ANYONE,
    ("GET", "/favicon.ico"): ANYONE,
    ("GET", "/static/{path:path}"): ANYONE,
}
ABSENT = "01934f5e-7a11-7c3e-9d5b-2f0a6f5c1e77"
MEANT_TO_FAIL = {("POST", "/auth/login"), ("POST", "/auth/token"), ("POST", "/auth/register")}
"""Open to all; a body of nothing is refused there, never with the words of an authorization."""
LAST = ("POST", "/auth/logout")
CHECKED = [key for key in ROUTES if key[0] != "WS" and key != LAST]


@pytest.fixture(scope="module")
def credentials(service: Service) -> dict[str, str]:
    """A credential of each kind of principal."""
    user, admin = service.user(), service.admin()
    found = {"bad": "apz_" + "x" * 43, USER: user.token, ADMIN: admin.token}
    for account, name, scopes in [(user, name, scopes) for name, scopes in KEYS.items()] + [(admin, ADMIN_KEY, ["admin"])]:
        with service.client(account) as client:
            made = client.post("/auth/keys", json={"name": name, "scopes": scopes})
        assert made.status_code == 201, made.text
        found[name] = made.json()["key"]
    return found


def routes(service: Service) -> Iterator[tuple[str, str]]:
    for known in inventory(service.app.routes):
        if known.websocket:
            yield "WS", known.path
        for method in known.methods - {"HEAD"}:
            yield method, known.path


def ask(client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    for name in (
        "conversation_id",
        "document_id",
        "fact_id",
        "session_id",
        "key_id",
        "invite_id",
        "user_id",
        "response_id",
        "feedback_id",
        "run_id",
        "snapshot_id",
        "prediction_id",
        "version",
    ):
        path = path.replace(f"{{{name}}}", ABSENT)
    headers = {"X-Forwarded-For": "10.0.0.1", "Content-Type": "application/json", **more.pop("headers", {})}
    content = b"{}" if method in ("POST", "PATCH") else None
    path = path.replace("{model:path}", "echo/echo")
    return client.request(method, path.replace("{path:path}", "none.js"), content=content, headers=headers, **more)


def test_the_table_is_complete(service: Service) -> None:
    served = list(routes(service))
    assert set(served) == set(ROUTES)
    assert len(served) == len(set(served))


@pytest.mark.parametrize(("method", "path"), CHECKED, ids=lambda part: part)
def test_the_table_holds(service: Service, credentials: dict[str, str], method: str, path: str) -> None:
    allowed = ROUTES[method, path]
    with service.client() as client:
        for principal in sorted(EVERYBODY):
            token = credentials.get(principal)
            carriers = [{}] if token is None else [{"Authorization": f"Bearer {token}"}, {"x-api-key": token}]
            statuses = {ask(client, method, path, headers=headers).status_code for headers in carriers}
            assert len(statuses) == 1, (principal, statuses)
            status = statuses.pop()
            if principal in allowed:
                if (method, path) not in MEANT_TO_FAIL:
                    assert status not in (401, 403), (principal, status)
                assert status < 500
            elif principal in ("nobody", "bad") and path != "/metrics":
                assert status == 401, (principal, status)
            else:
                assert status in (401, 403), (principal, status)


@pytest.mark.parametrize(("method", "path"), CHECKED, ids=lambda part: part)
def test_a_credential_in_the_url_counts_for_nothing(
    service: Service, credentials: dict[str, str], method: str, path: str
) -> None:
    if ROUTES[method, path] == ANYONE:
        return
    token = credentials[ADMIN]
    with service.client() as client:
        params = {"access_token": token, "token": token, "api_key": token, "x-api-key": token}
        assert ask(client, method, path, params=params).status_code in (401, 403)


@pytest.mark.parametrize(("method", "path"), CHECKED, ids=lambda part: part)
def test_other_methods_are_405(service: Service, credentials: dict[str, str], method: str, path: str) -> None:
    # Also of a route whose variable part takes in this path, as that of a response does "input_tokens".
    known = {each for each, there in ROUTES if each != "WS" and compile_path(there)[0].match(path)}
    with service.client() as client:
        for other in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - known:
            answer = ask(client, other, path, headers={"Authorization": f"Bearer {credentials[ADMIN]}"})
            assert answer.status_code == 405, (other, answer.status_code)
            assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == known


@pytest.mark.parametrize(("method", "path"), CHECKED, ids=lambda part: part)
def test_who_calls_is_asked_before_what_was_sent(service: Service, credentials: dict[str, str], method: str, path: str) -> None:
    sent = {"Content-Type": "text/plain"}
    with service.client() as client:
        for principal, status in ((None, 401), (USER, 403)):
            if ROUTES[method, path] & {principal, "bad"} or path == "/metrics" or not ROUTES[method, path]:
                continue
            headers = sent if principal is None else sent | {"Authorization": f"Bearer {credentials[principal]}"}
            assert ask(client, method, path, headers=headers).status_code == status


def test_the_cookie_gives_the_same(service: Service) -> None:
    user = service.user()
    with service.client() as client:
        login = client.post("/auth/login", json={"username": user.username, "password": PASSWORD})
        assert login.status_code == 200
        assert user.token not in login.text
        cookies = "; ".join(line.partition(";")[0] for line in login.headers.get_list("set-cookie"))
        assert client.get("/model", headers={"Cookie": cookies}).status_code == 200
        assert client.post("/model", json={}, headers={"Cookie": cookies}).status_code == 403
        for origin in ("https://evil.example", "null"):
            headers = {"Cookie": cookies, "Origin": origin}
            assert client.post("/predict", json={"prompt": "a"}, headers=headers).status_code == 403


@pytest.mark.parametrize("principal", sorted(EVERYBODY))
def test_the_websocket_row_holds(service: Service, credentials: dict[str, str], principal: str) -> None:
    token = credentials.get(principal)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    address = f"ws://127.0.0.1:{service.port}/predict/ws"
    if principal in ROUTES["WS", "/predict/ws"]:
        with connect(address, additional_headers=headers, proxy=None) as socket:
            socket.send('{"prompt":"a"}')
            assert json.loads(socket.recv(10))["event"] == "delta"
        return
    with pytest.raises(InvalidStatus) as refused, connect(address, additional_headers=headers, proxy=None):
        pass
    assert refused.value.response.status_code == (401 if principal in ("nobody", "bad") else 403)


def test_feedback_by_id_needs_the_scope(service: Service, credentials: dict[str, str]) -> None:
    with service.client() as client:
        for principal in sorted(EVERYBODY):
            token = credentials.get(principal)
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            answer = client.post("/feedback", json={"prediction_id": ABSENT, "rating": "up"}, headers=headers)
            expected = 404 if principal in PERSON | {"key feedback"} else 401 if principal in ("nobody", "bad") else 403
            assert answer.status_code == expected, principal


def test_every_route_is_described(service: Service) -> None:
    document = service.app.openapi()
    described = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    wanted = {("GET" if method == "WS" else method, _described(path)) for method, path in ROUTES if _api(path)}
    assert described == wanted
    open_to_all = {(_described(path), method.lower()) for (method, path), allowed in ROUTES.items() if allowed == ANYONE}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            refused = "529" if _error_name(path) == "AnthropicError" else "503"
            assert {"401", "403", "404", "429", "500", refused} <= set(operation["responses"]), (method, path)
            assert _error_schema(path, operation) == {"$ref": f"#/components/schemas/{_error_name(path)}"}
            anonymous = (path, method) in open_to_all
            assert ({} in operation["security"]) == (anonymous or (path, method) in OPEN_OPERATIONS), (method, path)
    text = json.dumps(document)
    for reference in {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in document["components"]["schemas"]


def test_every_fastapi_route_is_strict(service: Service) -> None:
    for route in service.app.routes:
        for inner in getattr(getattr(route, "original_router", None), "routes", []):
            assert not isinstance(inner, APIRoute) or isinstance(inner, StrictRoute), inner.path


def test_the_reference_page_needs_nothing_from_elsewhere(service: Service) -> None:
    with service.client(service.admin()) as client:
        page = client.get("/docs")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert "//" not in page.text.replace("://", "", 0).split("<style>")[0]
    assert "default-src 'none'; style-src 'sha256-" in page.headers["content-security-policy"]
    for _, path in ROUTES:
        assert not _api(path) or _described(path) in page.text


def _described(path: str) -> str:
    """A path as OpenAPI writes it."""
    return path.replace(":path}", "}")


def _error_name(path: str) -> str:
    """Schema of the errors of a path: each vendor's own."""
    if not path.startswith("/v1/"):
        return "Problem"
    return "AnthropicError" if path.startswith("/v1/messages") else "OpenAIError"


def _error_schema(path: str, operation: dict[str, Any]) -> Any:
    if not path.startswith("/v1/"):
        return operation["responses"]["422"]["content"]["application/problem+json"]["schema"]
    assert "422" not in operation["responses"]  # the vendors answer 400
    return operation["responses"]["400"]["content"]["application/json"]["schema"]


def _api(path: str) -> bool:
    return path not in ("/", "/login", "/setup", "/favicon.ico", "/openapi.json", "/docs") and not path.startswith("/static")
