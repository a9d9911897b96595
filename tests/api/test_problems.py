"""One error shape, whoever produces the error, and always with the request's id."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.problems import STATUS, headers_of, problem, status_of
from app.core import errors
from app.core.errors import AprendizError
from tests.conftest import Serve, Service


def tree(root: type[AprendizError]) -> Iterator[type[AprendizError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_error_has_a_status() -> None:
    classes = set(tree(AprendizError))
    assert classes == set(STATUS)
    assert all(400 <= status < 600 for status in STATUS.values())
    slugs = [cls.slug for cls in classes]
    assert len(slugs) == len(set(slugs))


def test_a_subclass_from_elsewhere_gets_its_ancestors_status() -> None:
    class Odd(errors.Conflict):
        pass

    assert status_of(Odd("x")) == 409


def test_our_own_faults_show_nothing() -> None:
    for error in (RuntimeError("secret"), errors.ConfigurationError("/etc/secret"), AprendizError("secret")):
        body = problem(error)
        assert body["status"] == 500
        assert "secret" not in json.dumps(body)


def test_headers_of_a_problem() -> None:
    assert headers_of(errors.Overloaded(retry_after=0.2)) == {"Retry-After": "1"}
    assert headers_of(errors.Overloaded(retry_after=2.1)) == {"Retry-After": "3"}
    assert "WWW-Authenticate" in headers_of(errors.Unauthenticated())


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert body["status"] == status
    assert body["type"].startswith("urn:aprendiz:problem:")
    assert body["instance"] == f"urn:aprendiz:request:{answer.headers['x-request-id']}"
    return body


def test_every_producer_gives_the_same_shape(service: Service) -> None:
    json_type = {"Content-Type": "application/json"}
    with service.client() as client:
        assert_problem(client.get("/nothing-here"), 404)
        assert_problem(client.get("/auth/nothing"), 404)
        assert_problem(client.get("/predict/"), 404)
        assert_problem(client.get("/static/nothing.js"), 404)
        for path, allowed in (("/predict", "POST"), ("/health/live", "GET"), ("/auth/login", "POST")):
            answer = client.request("PUT", path)
            assert_problem(answer, 405)
            assert allowed in answer.headers["allow"]
        assert_problem(client.request("PROPFIND", "/predict"), 405)
        unauthenticated = client.post("/predict", json={})
        assert_problem(unauthenticated, 401)
        assert unauthenticated.headers["www-authenticate"].startswith("Bearer")
        assert_problem(client.get("/model", headers={"Authorization": "Bearer nonsense"}), 401)
        assert_problem(client.get("/model", headers={"Host": "evil.example"}), 400)
        assert_problem(client.get("/health/live?" + "a" * 9000), 414)
        assert_problem(client.get("/health/live", headers=[(f"x-{n}", "a") for n in range(150)]), 431)
        assert_problem(client.post("/auth/register", content=b"{", headers=json_type), 422)
        assert_problem(client.post("/auth/register", content=b"a" * 4_200_000, headers=json_type), 413)
        assert_problem(client.post("/auth/register", content=b"a"), 415)
        missing = assert_problem(client.post("/auth/register", json={"password": "hunter2-canary"}), 422)
        assert missing["errors"]
        assert "canary" not in json.dumps(missing)
    with service.client(service.user()) as client:
        assert_problem(client.post("/model", json={"provider": "echo", "model": "echo"}), 403)
    with service.client(service.admin()) as client:
        assert_problem(client.post("/model/promote", json={"version": "0" * 16}), 404)
        assert_problem(client.post("/model", json={"provider": "echo", "model": "unloadable"}), 422)
        assert_problem(client.post("/model", json={"provider": "nope", "model": "x"}), 404)
        assert_problem(client.post("/model/rollback"), 409)


def test_a_bug_is_a_500_without_details(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def add_bugs(app: FastAPI) -> None:
        @app.get("/bug")
        async def bug() -> None:
            raise RuntimeError("canary /etc/passwd")

        @app.get("/zero")
        def zero() -> float:
            return 1 / 0

    service = serve(before=add_bugs)
    with caplog.at_level(logging.ERROR), service.client() as client:
        for path in ("/bug", "/zero"):
            body = assert_problem(client.get(path, headers={"X-Request-ID": "trace-me"}), 500)
            assert body["instance"] == "urn:aprendiz:request:trace-me"
            assert "canary" not in json.dumps(body)
            assert "division" not in json.dumps(body)
    assert sum(record.exc_info is not None for record in caplog.records) == 2


@pytest.mark.parametrize("given", ["abc", "a" * 128, "A.b_c-9"])
def test_a_sane_request_id_is_kept(service: Service, given: str) -> None:
    with service.client() as client:
        assert client.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", '{"level":"error"}', "ñ", "a\x1b[31m", "a;b", "${jndi:x}"])
def test_an_odd_request_id_is_replaced(service: Service, given: str) -> None:
    with service.client() as client:
        answer = client.get("/health/live", headers=[(b"X-Request-ID", given.encode())])
    if answer.status_code == 200:
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 36


def test_two_request_ids_are_none(service: Service) -> None:
    with service.client() as client:
        answer = client.get("/health/live", headers=[("X-Request-ID", "one"), ("X-Request-ID", "two")])
    assert len(answer.headers["x-request-id"]) == 36


_TO_LOGIN = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
RAW = {
    "not http": b"hello\r\n\r\n",
    "smuggled": _TO_LOGIN + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "two hosts": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "bad host": b"GET /health/live HTTP/1.1\r\nHost: a/health?x=\r\n\r\n",
    "obs-fold": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    "bad chunk": _TO_LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "long header": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "nul in the path": b"GET /conversations/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nul in the query": b"GET /conversations?after=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "long url": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_not_proper_http_gets_the_shape_too(service: Service, name: str) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(RAW[name])
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert 400 <= status < 500
    assert b"application/problem+json" in head.lower()
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["type"] in {f"urn:aprendiz:problem:{cls.slug}" for cls in STATUS}
